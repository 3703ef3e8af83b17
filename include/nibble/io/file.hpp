// The bytes of a file, read-only: what every reader in io/ stands on.
//
//   open_mode::map    the file is mapped (POSIX); pages are read when touched, nothing is copied, opening costs nothing
//   open_mode::copy   the file is copied into memory; also what `map` means where there is no mmap
//
// Mapped bytes are only as good as the file: if another process truncates it while it is mapped, touching the lost
// pages ends the program (SIGBUS), and if one rewrites it, what a reader checked may no longer hold. Map files that
// nobody writes to; read files that are not trusted to stay still.
//
// Only regular files: a directory, a pipe or a device is an error, and a pipe never blocks. Memory is never asked for
// before the size is known from the file system.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "../detail/names.hpp"
#include "../error.hpp"

#if defined(__unix__) || defined(__APPLE__)
#define NIBBLE_HAS_MMAP 1
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#else
#define NIBBLE_HAS_MMAP 0
#endif

namespace nibble::inline NIBBLE_ABI::io {

/// How the bytes of a file come into memory.
enum class open_mode {
    map,   ///< mapped where the system can, else copied
    copy,  ///< copied
};

namespace detail {

using nibble::detail::printable;
using nibble::detail::quoted;

[[nodiscard]] constexpr bool mul_overflows(std::uint64_t a, std::uint64_t b) noexcept {
    return a != 0 && b > (std::numeric_limits<std::uint64_t>::max)() / a;
}

[[nodiscard]] inline std::string quoted_path(const std::filesystem::path& path) {
    const auto text = path.u8string();
    return quoted(std::string_view(reinterpret_cast<const char*>(text.data()), text.size()), 1000);
}

[[nodiscard]] inline failure io_failure(const std::filesystem::path& path, const char* what, std::error_code why,
                                        std::uint64_t offset = 0) {
    std::string message = std::string(what) + " " + quoted_path(path);
    if (why) message += ": " + why.message();
    return {why == std::errc::no_such_file_or_directory ? errc::not_found : errc::io, message, offset};
}

/// A failure of what stands in a file, with the file's name in front.
[[nodiscard]] inline failure in_file(const std::filesystem::path& path, failure why) {
    why.message = quoted_path(path) + ": " + why.message;
    return why;
}

[[nodiscard]] inline std::error_code last_error() noexcept { return {errno, std::generic_category()}; }

}  // namespace detail

/// The bytes of one file, owned. They stay where they are when the object moves.
class file_bytes {
public:
    file_bytes() noexcept = default;
    file_bytes(file_bytes&& other) noexcept { swap(other); }
    file_bytes& operator=(file_bytes&& other) noexcept {
        file_bytes taken(std::move(other));
        swap(taken);
        return *this;
    }
    file_bytes(const file_bytes&) = delete;
    file_bytes& operator=(const file_bytes&) = delete;
    ~file_bytes() {
#if NIBBLE_HAS_MMAP
        if (mapping_ != nullptr) ::munmap(mapping_, size_);
#endif
    }

    /// Opens a regular file. An empty file is fine here: it has no bytes.
    [[nodiscard]] static result<file_bytes> open(const std::filesystem::path& path, open_mode how = open_mode::map) {
        // A name is cut at its first NUL by the system, which would open another file than the one asked for.
        if (path.native().find(std::filesystem::path::value_type{}) != std::filesystem::path::string_type::npos)
            return failure{errc::invalid_argument, "cannot open " + detail::quoted_path(path) + ": NUL in the name", 0};
#if NIBBLE_HAS_MMAP
        if (how == open_mode::map) return open_mapped(path);
#endif
        static_cast<void>(how);
        return open_copied(path);
    }

    [[nodiscard]] std::span<const std::byte> bytes() const noexcept {
        if (copy_ != nullptr) return {copy_.get(), size_};
        return {static_cast<const std::byte*>(mapping_), size_};
    }

    /// Whether the bytes are a mapping of the file rather than a copy.
    [[nodiscard]] bool mapped() const noexcept { return mapping_ != nullptr; }

    /// The pages of `part` leave this process's memory, and are mapped again when they are touched.
    /// Who reads a file larger than memory from end to end says so; nothing else changes. Does nothing for a copy.
    void release([[maybe_unused]] std::span<const std::byte> part) const noexcept {
#if NIBBLE_HAS_MMAP && defined(MADV_DONTNEED)
        if (mapping_ == nullptr || part.empty() || !contains(part)) return;
        const auto begin = static_cast<const std::byte*>(mapping_);
        const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
        const auto first = static_cast<std::size_t>(part.data() - begin) / page * page;
        const auto last = static_cast<std::size_t>(part.data() - begin) + part.size();
        static_cast<void>(::madvise(static_cast<std::byte*>(mapping_) + first, last - first, MADV_DONTNEED));
#endif
    }

private:
    [[nodiscard]] bool contains(std::span<const std::byte> part) const noexcept {
        const auto all = bytes();
        const std::less_equal<const std::byte*> before;
        return before(all.data(), part.data()) && before(part.data() + part.size(), all.data() + all.size());
    }
    void swap(file_bytes& other) noexcept {
        std::swap(mapping_, other.mapping_);
        std::swap(copy_, other.copy_);
        std::swap(size_, other.size_);
    }

    [[nodiscard]] static result<file_bytes> open_copied(const std::filesystem::path& path) {
        std::error_code why;
        const auto kind = std::filesystem::status(path, why).type();
        if (kind == std::filesystem::file_type::directory)
            return detail::io_failure(path, "cannot read", std::make_error_code(std::errc::is_a_directory));
        if (!why && kind == std::filesystem::file_type::not_found)
            why = std::make_error_code(std::errc::no_such_file_or_directory);  // to some libraries that is no error
        if (why) return detail::io_failure(path, "cannot open", why);
        if (kind != std::filesystem::file_type::regular)
            return failure{errc::io, "cannot read " + detail::quoted_path(path) + ": not a regular file", 0};

        const std::uintmax_t size = std::filesystem::file_size(path, why);
        if (why) return detail::io_failure(path, "cannot take the size of", why);
        if (!fits(size)) return too_large(path, size);
        errno = 0;
        std::ifstream stream(path, std::ios::in | std::ios::binary);
        if (!stream) return detail::io_failure(path, "cannot open", detail::last_error());

        file_bytes file;
        file.size_ = static_cast<std::size_t>(size);
        if (size == 0) return file;
        file.copy_.reset(new (std::nothrow) std::byte[file.size_]);
        if (file.copy_ == nullptr) return too_large(path, size);
        stream.read(reinterpret_cast<char*>(file.copy_.get()), static_cast<std::streamsize>(size));
        const auto got = static_cast<std::uint64_t>(stream.gcount());
        if (got != size)
            return failure{errc::io,
                           "cannot read " + detail::quoted_path(path) + ": got " + std::to_string(got) + " of " +
                               std::to_string(size) + " bytes",
                           got};
        return file;
    }

#if NIBBLE_HAS_MMAP
    struct descriptor {
        int fd = -1;
        descriptor() = default;
        descriptor(const descriptor&) = delete;
        descriptor& operator=(const descriptor&) = delete;
        ~descriptor() {
            if (fd >= 0) ::close(fd);
        }
    };

    [[nodiscard]] static result<file_bytes> open_mapped(const std::filesystem::path& path) {
        descriptor file;
        do {  // O_NONBLOCK: opening a pipe that nobody writes to must not wait; it changes nothing for a regular file
            file.fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        } while (file.fd < 0 && errno == EINTR);
        if (file.fd < 0) return detail::io_failure(path, "cannot open", detail::last_error());

        struct stat before {};
        if (::fstat(file.fd, &before) != 0)
            return detail::io_failure(path, "cannot take the size of", detail::last_error());
        if (S_ISDIR(before.st_mode))
            return detail::io_failure(path, "cannot read", std::make_error_code(std::errc::is_a_directory));
        if (!S_ISREG(before.st_mode))
            return failure{errc::io, "cannot read " + detail::quoted_path(path) + ": not a regular file", 0};
        const auto size = static_cast<std::uintmax_t>(before.st_size);
        if (!fits(size)) return too_large(path, size);

        file_bytes out;
        if (size == 0) return out;  // mmap refuses empty mappings
        void* const at = ::mmap(nullptr, static_cast<std::size_t>(size), PROT_READ, MAP_PRIVATE, file.fd, 0);
        if (at == MAP_FAILED) return open_copied(path);  // some file systems cannot map
        out.mapping_ = at;
        out.size_ = static_cast<std::size_t>(size);

        struct stat after {};
        if (::fstat(file.fd, &after) != 0 || after.st_size != before.st_size)
            return failure{errc::io, "cannot map " + detail::quoted_path(path) + ": its size is changing", 0};
        return out;
    }
#endif

    [[nodiscard]] static bool fits(std::uintmax_t size) noexcept {
        return size <= static_cast<std::uintmax_t>((std::numeric_limits<std::ptrdiff_t>::max)());
    }
    [[nodiscard]] static failure too_large(const std::filesystem::path& path, std::uintmax_t size) {
        return {errc::io,
                "cannot read " + detail::quoted_path(path) + ": no memory for its " + std::to_string(size) + " bytes",
                0};
    }

    void* mapping_ = nullptr;
    std::unique_ptr<std::byte[]> copy_;
    std::size_t size_ = 0;
};

}  // namespace nibble::io
