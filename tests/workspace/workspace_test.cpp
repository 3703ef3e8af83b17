// Scratch memory of the caller: alignment, growth, sizes that do not fit, and that nothing is allocated once there is
// enough.
#include <nibble/workspace.hpp>

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/count_allocations.hpp"
#include "support/mistake.hpp"

using nibble::errc;
using nibble::workspace;
using nibble::detail::arena;
using Index = nibble::index;

namespace {

bool aligned(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 64 == 0; }

struct plain {
    double a;
    char b;
};

/// The arrays of an imaginary call.
struct arrays {
    std::span<float> scale;
    std::span<std::uint8_t> codes;
    std::span<plain> records;
    std::span<std::int64_t> none;
    void lay_out(workspace& w, Index n) {
        nibble::detail::lay_out(w, [&](arena& a) {
            scale = a.take<float>(n);
            codes = a.take<std::uint8_t>(3 * n + 1);
            none = a.take<std::int64_t>(0);
            records = a.take<plain>(n);
        });
    }
};

}  // namespace

TEST_CASE("a workspace grows and keeps its memory", "[workspace]") {
    workspace w;
    CHECK(w.capacity() == 0);
    CHECK(w.data() == nullptr);
    w.reserve(0);
    CHECK(w.capacity() == 0);
    w.reserve(1);
    CHECK(w.capacity() == 64);
    CHECK(aligned(w.data()));
    w.reserve(1000);
    CHECK(w.capacity() == 1024);
    CHECK(aligned(w.data()));
    std::memset(w.data(), 1, w.capacity());
    const std::byte* before = w.data();
    w.reserve(500);
    CHECK(w.capacity() == 1024);
    CHECK(w.data() == before);
    workspace moved(std::move(w));
    CHECK(moved.data() == before);
    CHECK(w.capacity() == 0);
    CHECK(w.data() == nullptr);
    w.reserve(10);
    w = std::move(moved);
    CHECK(w.data() == before);
    CHECK(w.capacity() == 1024);
    workspace& self = w;
    w = std::move(self);
    CHECK(w.data() == before);
    w.release();
    CHECK(w.capacity() == 0);
    CHECK(workspace(128).capacity() == 128);
    static_assert(!std::is_copy_constructible_v<workspace> && !std::is_copy_assignable_v<workspace>);
    static_assert(std::is_nothrow_move_constructible_v<workspace> && std::is_nothrow_move_assignable_v<workspace>);
}

TEST_CASE("arrays are laid out one after the other, each aligned", "[workspace]") {
    workspace w;
    arrays a;
    for (const Index n : {1, 16, 100, 3}) {
        a.lay_out(w, n);
        const auto size = static_cast<std::size_t>(n);
        CHECK(a.scale.size() == size);
        CHECK(a.codes.size() == 3 * size + 1);
        CHECK(a.records.size() == size);
        CHECK(a.none.empty());
        CHECK((aligned(a.scale.data()) && aligned(a.codes.data()) && aligned(a.records.data())));
        // Filled in any order, none touches another.
        for (float& x : a.scale) x = 1.5f;
        for (plain& r : a.records) r = {2.0, 'r'};
        for (std::uint8_t& c : a.codes) c = 0xee;
        for (const float x : a.scale) REQUIRE(x == 1.5f);
        for (const plain& r : a.records) REQUIRE((r.a == 2.0 && r.b == 'r'));
        for (const std::uint8_t c : a.codes) REQUIRE(c == 0xee);
    }
    const auto round = [](std::size_t bytes) { return (bytes + 63) / 64 * 64; };
    CHECK(w.capacity() == round(400) + round(301) + round(1600));  // the largest of the calls, no more
}

TEST_CASE("nothing is allocated once there is enough", "[workspace]") {
    workspace w;
    arrays a;
    CHECK(allocations::of([&] { a.lay_out(w, 100); }) == 1);
    CHECK(allocations::of([&] {
              for (Index n = 100; n >= 0; --n) a.lay_out(w, n);
          }) == 0);
    CHECK(allocations::of([&] { a.lay_out(w, 120); }) == 1);
    CHECK(allocations::of([&] { workspace other(std::move(w)); }) == 0);
}

TEST_CASE("sizes that do not fit are errors", "[workspace]") {
    workspace w(256);
    mistake m = of([&] { w.reserve(SIZE_MAX); });
    CHECK(m.code == errc::out_of_range);
    CHECK(contains(m.message, std::to_string(SIZE_MAX) + " bytes"));
    CHECK(w.capacity() == 256);  // as it was
    m = of([&] { w.reserve(static_cast<std::size_t>(PTRDIFF_MAX)); });
    CHECK(m.code == errc::out_of_range);

    arena count;
    m = of([&] { static_cast<void>(count.take<double>(PTRDIFF_MAX / 4)); });
    CHECK(m.code == errc::out_of_range);
    CHECK(contains(m.message, std::to_string(PTRDIFF_MAX / 4) + " elements of 8"));
    m = of([&] { static_cast<void>(count.take<char>(-1)); });
    CHECK(m.code == errc::invalid_argument);
    CHECK(contains(m.message, "-1 elements"));
    CHECK(count.bytes() == 0);
    // Sums overflow as well as products do.
    static_cast<void>(count.take<char>(PTRDIFF_MAX - 200));
    m = of([&] { static_cast<void>(count.take<char>(200)); });
    CHECK(m.code == errc::out_of_range);
    CHECK(count.take<char>(0).empty());

    arena given(w);
    CHECK(given.take<float>(32).size() == 32);
    CHECK(given.bytes() == 128);
    m = of([&] { static_cast<void>(given.take<float>(33)); });
    CHECK(m.code == errc::out_of_range);
    CHECK(contains(m.message, "320 bytes are needed, there are 256"));
    CHECK(given.take<float>(32).size() == 32);
    CHECK(given.bytes() == 256);
    CHECK(given.take<float>(0).empty());
}
