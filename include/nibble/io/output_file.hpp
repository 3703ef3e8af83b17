// A file that is written beside its destination and takes its place when it is whole: whoever looks at the destination
// sees the old file (or none) or the whole new one, whatever goes wrong in between.
//
//   auto file = output_file::create("model.gguf");      // result<output_file>: model.gguf.partial.PID.N now exists
//   file.value().write(bytes).or_throw();               // as often as needed
//   file.value().commit().or_throw();                   // flushed to the disk, closed, renamed
//
// Every write, the flush, the closing and the renaming are checked. Without a commit() that succeeds, the partial file is
// removed; a process that is killed leaves it behind. The destination must be a regular file or not exist.
#pragma once

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <span>
#include <string>
#include <system_error>
#include <utility>

#include "../error.hpp"
#include "file.hpp"

namespace nibble::inline NIBBLE_ABI::io {

class output_file {
public:
    output_file(output_file&& other) noexcept { swap(other); }
    output_file& operator=(output_file&& other) noexcept {
        output_file taken(std::move(other));
        swap(taken);
        return *this;
    }
    output_file(const output_file&) = delete;
    output_file& operator=(const output_file&) = delete;
    ~output_file() { discard(); }

    /// Begins a file. Nothing is at `path` before commit() that was not there already.
    [[nodiscard]] static result<output_file> create(const std::filesystem::path& path) {
        if (path.native().find(std::filesystem::path::value_type{}) != std::filesystem::path::string_type::npos)
            return failure{errc::invalid_argument, "cannot write " + detail::quoted_path(path) + ": NUL in the name", 0};
        std::error_code why;
        const auto kind = std::filesystem::status(path, why).type();
        if (kind != std::filesystem::file_type::not_found && kind != std::filesystem::file_type::regular) {
            if (kind == std::filesystem::file_type::directory) why = std::make_error_code(std::errc::is_a_directory);
            if (why) return detail::io_failure(path, "cannot write", why);
            return failure{errc::io, "cannot write " + detail::quoted_path(path) + ": not a regular file", 0};
        }
        output_file out;
        out.path_ = path;
        for (int attempt = 0; attempt < 100; ++attempt) {
            out.partial_ = partial_name(path);
            if (out.open_partial()) return out;
            if (errno != EEXIST) break;
        }
        return detail::io_failure(out.partial_, "cannot create", detail::last_error());
    }

    /// Appends bytes. After a failure every call reports it again.
    [[nodiscard]] status write(std::span<const std::byte> bytes) {
        if (!status_ || !is_open()) return broken();
        if (write_all(bytes)) {
            size_ += bytes.size();
            return {};
        }
        return fail("cannot write", partial_);
    }
    /// Bytes written so far.
    [[nodiscard]] std::uint64_t size() const noexcept { return size_; }
    /// Where the bytes are before commit().
    [[nodiscard]] const std::filesystem::path& partial_path() const noexcept { return partial_; }

    /// Puts the file in its place. On failure the destination is what it was.
    [[nodiscard]] status commit() {
        if (!status_ || !is_open()) return broken();
        if (!flush()) return fail("cannot flush", partial_);
        if (!close()) return fail("cannot close", partial_);
        std::error_code why;
        if (!rename(why)) {
            errno = why.value();
            return fail("cannot rename the finished file to", path_);
        }
        partial_.clear();
        return {};
    }

private:
    output_file() = default;
    void swap(output_file& other) noexcept {
        std::swap(path_, other.path_);
        std::swap(partial_, other.partial_);
        std::swap(status_, other.status_);
        std::swap(size_, other.size_);
        std::swap(handle_, other.handle_);
    }

    [[nodiscard]] status broken() const {
        return status_ ? status(errc::invalid_argument, "this output file is finished") : status_;
    }
    [[nodiscard]] status fail(const char* what, const std::filesystem::path& path) {
        const failure why = detail::io_failure(path, what, detail::last_error(), size_);
        status_ = status(errc::io, why.message + " (after " + std::to_string(size_) + " bytes)");
        discard();
        return status_;
    }
    void discard() noexcept {
        if (is_open()) static_cast<void>(close());
        if (!partial_.empty()) {
            std::error_code ignored;
            std::filesystem::remove(partial_, ignored);
            partial_.clear();
        }
    }

    // Beside the destination: renaming works within one file system only.
    [[nodiscard]] static std::filesystem::path partial_name(const std::filesystem::path& path) {
        static std::atomic<unsigned> count{0};
        std::filesystem::path out = path;
#if NIBBLE_HAS_MMAP
        out += ".partial." + std::to_string(::getpid());
#else
        out += ".partial";
#endif
        out += "." + std::to_string(count.fetch_add(1));
        return out;
    }

#if NIBBLE_HAS_MMAP
    using handle = int;
    static constexpr handle no_handle = -1;

    [[nodiscard]] bool open_partial() noexcept {
        do {
            handle_ = ::open(partial_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        } while (handle_ < 0 && errno == EINTR);
        return handle_ >= 0;
    }
    [[nodiscard]] bool write_all(std::span<const std::byte> bytes) noexcept {
        while (!bytes.empty()) {
            constexpr std::size_t most = std::size_t{1} << 30;  // more at once is cut or refused by some systems
            const auto done = ::write(handle_, bytes.data(), bytes.size() < most ? bytes.size() : most);
            if (done < 0 && errno == EINTR) continue;
            if (done == 0) errno = EIO;  // no progress, and no reason given
            if (done <= 0) return false;
            bytes = bytes.subspan(static_cast<std::size_t>(done));
        }
        return true;
    }
    [[nodiscard]] bool flush() noexcept {
        int done;
        do {
            done = ::fsync(handle_);
        } while (done != 0 && errno == EINTR);
        return done == 0 || errno == EINVAL || errno == ENOTSUP;  // file systems that have nothing to flush to
    }
    // Never twice: the number may belong to another file of the program by then, even after EINTR.
    [[nodiscard]] bool close() noexcept { return ::close(std::exchange(handle_, no_handle)) == 0 || errno == EINTR; }
    [[nodiscard]] bool rename(std::error_code& why) const noexcept {
        if (::rename(partial_.c_str(), path_.c_str()) == 0) return true;
        why = detail::last_error();
        return false;
    }
#else
    using handle = std::FILE*;
    static constexpr handle no_handle = nullptr;

    [[nodiscard]] bool open_partial() noexcept {
        errno = 0;
        handle_ = std::fopen(partial_.string().c_str(), "wbx");
        return handle_ != nullptr;
    }
    [[nodiscard]] bool write_all(std::span<const std::byte> bytes) noexcept {
        return bytes.empty() || std::fwrite(bytes.data(), 1, bytes.size(), handle_) == bytes.size();
    }
    [[nodiscard]] bool flush() noexcept { return std::fflush(handle_) == 0; }
    [[nodiscard]] bool close() noexcept { return std::fclose(std::exchange(handle_, no_handle)) == 0; }
    [[nodiscard]] bool rename(std::error_code& why) const noexcept {
        std::filesystem::rename(partial_, path_, why);
        return !why;
    }
#endif
    [[nodiscard]] bool is_open() const noexcept { return handle_ != no_handle; }

    std::filesystem::path path_, partial_;
    status status_;
    std::uint64_t size_ = 0;
    handle handle_ = no_handle;
};

}  // namespace nibble::io
