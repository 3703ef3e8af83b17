// Scratch memory that the caller owns, so that a call which is given one allocates nothing once it is large enough.
//
//     nibble::workspace scratch;                   // one for each thread that calls
//     for (...) nibble::gemm(Wq, X, Y, {.workspace = &scratch});
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

#include "error.hpp"

namespace nibble::inline NIBBLE_ABI {

/// 64-byte aligned bytes that grow on demand and stay. Not to be used by two calls at the same time.
class workspace {
public:
    static constexpr std::size_t alignment = 64;

    workspace() noexcept = default;
    /// Reserves at once.
    explicit workspace(std::size_t bytes) { reserve(bytes); }
    workspace(workspace&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), capacity_(std::exchange(other.capacity_, 0)) {}
    workspace& operator=(workspace&& other) noexcept {
        if (this != &other) {
            release();
            data_ = std::exchange(other.data_, nullptr);
            capacity_ = std::exchange(other.capacity_, 0);
        }
        return *this;
    }
    ~workspace() { release(); }

    /// Makes room for at least that many bytes. What the memory held is lost if it must grow.
    /// Throws errc::out_of_range for more than can be addressed.
    void reserve(std::size_t bytes) {
        if (bytes <= capacity_) return;
        constexpr std::size_t most = static_cast<std::size_t>(PTRDIFF_MAX) - alignment;
        if (bytes > most)
            detail::fail(errc::out_of_range, "workspace: " + std::to_string(bytes) + " bytes do not fit in memory");
        release();  // before the new memory is asked for: the peak is the larger of the two, not their sum
        const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
        data_ = static_cast<std::byte*>(::operator new(rounded, std::align_val_t{alignment}));
        capacity_ = rounded;
    }
    /// Gives the memory back.
    void release() noexcept {
        if (data_ != nullptr) ::operator delete(data_, std::align_val_t{alignment});
        data_ = nullptr;
        capacity_ = 0;
    }

    /// Bytes that a call may use without allocating.
    [[nodiscard]] std::size_t capacity() const noexcept { return capacity_; }
    [[nodiscard]] std::byte* data() noexcept { return data_; }

private:
    std::byte* data_ = nullptr;
    std::size_t capacity_ = 0;
};

namespace detail {

/// Hands out arrays of a workspace, one after the other, each on a 64-byte boundary; without one it only counts. So one
/// function that takes the arrays runs twice (see lay_out).
class arena {
public:
    /// Counts: the spans it returns are empty.
    arena() noexcept = default;
    /// Hands out the memory of w, which must hold what will be taken.
    explicit arena(workspace& w) noexcept : base_(w.data()), capacity_(w.capacity()), counting_(false) {}
    /// Hands out memory of another arena.
    explicit arena(std::span<std::byte> memory) noexcept : base_(memory.data()), capacity_(memory.size()), counting_(false) {}

    /// The next `count` elements, uninitialized. Throws errc::out_of_range when the size does not fit in memory or in the
    /// workspace, errc::invalid_argument for a negative count.
    template <class T>
    [[nodiscard]] std::span<T> take(index count) {
        static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T> && alignof(T) <= workspace::alignment,
                      "scratch memory is for plain data");
        if (count < 0) fail(errc::invalid_argument, "workspace: an array of " + std::to_string(count) + " elements");
        constexpr std::size_t most = (static_cast<std::size_t>(PTRDIFF_MAX) / workspace::alignment - 2) * workspace::alignment;
        const auto n = static_cast<std::size_t>(count);
        if (n > (most - used_) / sizeof(T))
            fail(errc::out_of_range, "workspace: " + std::to_string(used_) + " bytes and " + std::to_string(n) +
                                         " elements of " + std::to_string(sizeof(T)) + " do not fit in memory");
        const std::size_t first = used_;
        const std::size_t end = first + (n * sizeof(T) + workspace::alignment - 1) / workspace::alignment * workspace::alignment;
        if (!counting_ && end > capacity_)
            fail(errc::out_of_range, "workspace: " + std::to_string(end) + " bytes are needed, there are " + std::to_string(capacity_));
        used_ = end;
        if (counting_ || n == 0) return {};
        return {reinterpret_cast<T*>(base_ + first), n};
    }

    /// Bytes taken so far, a multiple of 64.
    [[nodiscard]] std::size_t bytes() const noexcept { return used_; }

private:
    std::byte* base_ = nullptr;
    std::size_t capacity_ = 0;
    std::size_t used_ = 0;
    bool counting_ = true;
};

/// Runs arrays(arena&) twice, to count and, after one reserve, to hand out.
template <class Arrays>
void lay_out(workspace& w, Arrays&& arrays) {
    arena count;
    arrays(count);
    w.reserve(count.bytes());
    arena memory(w);
    arrays(memory);
}

}  // namespace detail
}  // namespace nibble
