// operator new that fails on command, and says what was asked of it. Included by one file of a program: it replaces the
// global operators. For the main thread.
//
//   for (long n = 0; n allocations succeed, the next one fails; ++n) {
//       failing_allocations::limit l(n);
//       ...
//   }
#pragma once

#include <climits>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace failing_allocations {

inline long left = LONG_MAX;     // calls that still succeed
inline long live = 0;            // objects that exist
inline std::size_t asked = 0;    // bytes asked for in all calls
inline std::size_t largest = 0;  // bytes asked for in one call

/// The next `n` allocations succeed, those after them fail. Ends with the object.
struct limit {
    explicit limit(long n) { left = n; }
    limit(const limit&) = delete;
    limit& operator=(const limit&) = delete;
    ~limit() { left = LONG_MAX; }
    [[nodiscard]] static bool reached() { return left == 0; }
};

inline void* get(std::size_t bytes, std::size_t alignment) noexcept {
    if (left == 0) return nullptr;
    if (left != LONG_MAX) --left;
    asked += bytes;
    largest = bytes > largest ? bytes : largest;
    void* p = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment + (bytes == 0 ? alignment : 0));
    if (p != nullptr) ++live;
    return p;
}
inline void* get_or_throw(std::size_t bytes, std::size_t alignment) {
    void* p = get(bytes, alignment);
    if (p == nullptr) throw std::bad_alloc();
    return p;
}
// Not inlined: GCC would see free() of what it takes for the library's operator new.
#if defined(__GNUC__)
__attribute__((noinline))
#endif
inline void release(void* p) noexcept {
    if (p != nullptr) --live;
    std::free(p);
}
inline constexpr std::size_t plain = alignof(std::max_align_t);

}  // namespace failing_allocations

void* operator new(std::size_t n) { return failing_allocations::get_or_throw(n, failing_allocations::plain); }
void* operator new[](std::size_t n) { return failing_allocations::get_or_throw(n, failing_allocations::plain); }
void* operator new(std::size_t n, std::align_val_t a) { return failing_allocations::get_or_throw(n, static_cast<std::size_t>(a)); }
void* operator new[](std::size_t n, std::align_val_t a) { return failing_allocations::get_or_throw(n, static_cast<std::size_t>(a)); }
void* operator new(std::size_t n, const std::nothrow_t&) noexcept { return failing_allocations::get(n, failing_allocations::plain); }
void* operator new[](std::size_t n, const std::nothrow_t&) noexcept { return failing_allocations::get(n, failing_allocations::plain); }
void* operator new(std::size_t n, std::align_val_t a, const std::nothrow_t&) noexcept { return failing_allocations::get(n, static_cast<std::size_t>(a)); }
void* operator new[](std::size_t n, std::align_val_t a, const std::nothrow_t&) noexcept { return failing_allocations::get(n, static_cast<std::size_t>(a)); }
void operator delete(void* p) noexcept { failing_allocations::release(p); }
void operator delete[](void* p) noexcept { failing_allocations::release(p); }
void operator delete(void* p, std::size_t) noexcept { failing_allocations::release(p); }
void operator delete[](void* p, std::size_t) noexcept { failing_allocations::release(p); }
void operator delete(void* p, std::align_val_t) noexcept { failing_allocations::release(p); }
void operator delete[](void* p, std::align_val_t) noexcept { failing_allocations::release(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { failing_allocations::release(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { failing_allocations::release(p); }
void operator delete(void* p, const std::nothrow_t&) noexcept { failing_allocations::release(p); }
void operator delete[](void* p, const std::nothrow_t&) noexcept { failing_allocations::release(p); }
void operator delete(void* p, std::align_val_t, const std::nothrow_t&) noexcept { failing_allocations::release(p); }
void operator delete[](void* p, std::align_val_t, const std::nothrow_t&) noexcept { failing_allocations::release(p); }
