// Rounds: every contender once in each, in changing order; medians and what they are worth.
#include "support/catch.hpp"

#include <algorithm>
#include <cmath>
#include <set>

#include "../../bench/timing.hpp"

TEST_CASE("median and its uncertainty") {
    CHECK(bench::median_of({3.0, 1.0, 2.0}) == 2.0);
    CHECK(bench::median_of({4.0, 1.0, 2.0, 3.0}) == 2.5);
    CHECK(std::isnan(bench::median_of({})));
    bench::samples s;
    s.cpu_ms = {1.0, 2.0};
    CHECK(s.uncertainty() == 1.0);  // nobody knows
    s.cpu_ms = {2.0, 2.0, 2.0};
    CHECK(s.uncertainty() == 0.0);
    s.cpu_ms = {1.0, 2.0, 3.0, 4.0, 5.0};
    CHECK(s.median() == 3.0);
    CHECK(s.uncertainty() == Approx(1.57 * 2.0 / std::sqrt(5.0) / 3.0));
}

TEST_CASE("the time left is what the rounds and the deadline allow") {
    const bench::round_plan plan{3, 25, 100.0};
    CHECK(plan.time_left(10.0, 5.0, 0) == 90.0);
    CHECK(plan.time_left(99.0, 5.0, 0) == 15.0);  // three rounds whatever the deadline
    CHECK(plan.time_left(99.0, 5.0, 3) == 1.0);
    CHECK(plan.time_left(10.0, 0.1, 0) == Approx(2.5));  // 25 rounds and no more
    CHECK(plan.time_left(10.0, 0.1, 25) == 0.0);
    CHECK(plan.time_left(200.0, 5.0, 4) == 0.0);
}

TEST_CASE("each round runs every contender once, in an order of its own") {
    constexpr std::size_t count = 6;
    std::vector<std::size_t> order;
    std::vector<bench::samples> into(count);
    std::vector<bench::contender> contenders;
    for (std::size_t i = 0; i < count; ++i)
        contenders.push_back({std::to_string(i), [&order, i] { order.push_back(i); }, &into[i]});
    bench::progress shown;
    REQUIRE(bench::time_rounds(contenders, {8, 8, 0.0}, shown) == 8);
    REQUIRE(order.size() == 8 * count);
    std::set<std::vector<std::size_t>> orders;
    for (std::size_t round = 0; round < 8; ++round) {
        const auto first = order.begin() + static_cast<std::ptrdiff_t>(round * count);
        std::vector<std::size_t> sorted(first, first + count);
        orders.insert(sorted);
        std::sort(sorted.begin(), sorted.end());
        CHECK(sorted == std::vector<std::size_t>{0, 1, 2, 3, 4, 5});
    }
    CHECK(orders.size() > 1);  // eight times the same of 720 would be odd
    for (const bench::samples& s : into) {
        CHECK(s.cpu_ms.size() == 8);
        CHECK(s.wall_ms.size() == 8);
    }
}

TEST_CASE("samples go to the contender they belong to") {
    bench::samples quick, slow;
    volatile double sink = 1.0;
    const std::vector<bench::contender> contenders = {
        {"quick", [] {}, &quick},
        {"slow",
         [&sink] {
             for (int i = 0; i < 2000000; ++i) sink = sink * 1.0000001;
         },
         &slow},
    };
    bench::progress shown;
    CHECK(bench::time_rounds(contenders, {3, 3, 0.0}, shown) == 3);
    CHECK(slow.median() > 10.0 * quick.median());
    CHECK(slow.median() > 1.0);  // milliseconds
}

TEST_CASE("the deadline ends the rounds, but not before the least number") {
    bench::samples into;
    const std::vector<bench::contender> contenders = {{"c", [] {}, &into}};
    bench::progress shown;
    CHECK(bench::time_rounds(contenders, {2, 25, 0.0}, shown) == 2);
    CHECK(bench::time_rounds(contenders, {2, 4, 1e9}, shown) == 4);
    CHECK(into.cpu_ms.size() == 6);
}
