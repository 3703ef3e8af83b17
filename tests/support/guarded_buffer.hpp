// Memory between two pages that nobody may touch: a read or write outside a buffer of the caller ends the program.
//
//   side::right   [no access][ ....... data][no access]    the default: one element past the end faults
//   side::left    [no access][data ....... ][no access]    one element before the beginning faults
//
// Systems without mmap get a plain vector, which sanitizers guard.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <vector>

#if __has_include(<sys/mman.h>) && __has_include(<unistd.h>)
#include <sys/mman.h>
#include <unistd.h>
#define NIBBLE_TEST_GUARD_PAGES 1
#else
#define NIBBLE_TEST_GUARD_PAGES 0
#endif

enum class side { left, right };

template <class T>
class guarded_buffer {
    static_assert(std::is_trivially_copyable_v<T>);

public:
    explicit guarded_buffer(std::size_t count, side where = side::right) : count_(count) {
        const std::size_t bytes = count * sizeof(T);
#if NIBBLE_TEST_GUARD_PAGES
        const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
        const std::size_t inner = (bytes + page - 1) / page * page;
        mapped_ = inner + 2 * page;
        void* base = ::mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (base == MAP_FAILED) throw std::bad_alloc();
        base_ = static_cast<std::byte*>(base);
        if (inner != 0 && ::mprotect(base_ + page, inner, PROT_READ | PROT_WRITE) != 0) {
            ::munmap(base_, mapped_);
            throw std::bad_alloc();
        }
        std::byte* first = base_ + page + (where == side::right ? inner - bytes : 0);
#else
        static_cast<void>(where);
        storage_.resize(bytes + 1);
        std::byte* first = storage_.data();
#endif
        data_ = static_cast<T*>(static_cast<void*>(first));
        if (bytes != 0) std::memset(first, 0xa5, bytes);
    }
    ~guarded_buffer() {
#if NIBBLE_TEST_GUARD_PAGES
        ::munmap(base_, mapped_);
#endif
    }
    guarded_buffer(const guarded_buffer&) = delete;
    guarded_buffer& operator=(const guarded_buffer&) = delete;

    [[nodiscard]] T* data() noexcept { return data_; }
    [[nodiscard]] const T* data() const noexcept { return data_; }
    [[nodiscard]] std::size_t size() const noexcept { return count_; }
    [[nodiscard]] T& operator[](std::size_t i) noexcept { return data_[i]; }
    [[nodiscard]] const T& operator[](std::size_t i) const noexcept { return data_[i]; }

private:
    T* data_ = nullptr;
    std::size_t count_ = 0;
#if NIBBLE_TEST_GUARD_PAGES
    std::byte* base_ = nullptr;
    std::size_t mapped_ = 0;
#else
    std::vector<std::byte> storage_;
#endif
};
