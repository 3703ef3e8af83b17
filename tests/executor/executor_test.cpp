// Executors: each task once, exceptions carried to the caller, nesting, and no allocation. Run it under the preset tsan,
// too.
#include <nibble/executor.hpp>

#include <memory>
#include <thread>

#include "support/count_allocations.hpp"
#include "support/executor_checks.hpp"
#include "support/mistake.hpp"
#include "support/spawning.hpp"

using Index = nibble::index;

TEST_CASE("the serial executor runs tasks in order on the calling thread", "[executor]") {
    nibble::executor& one = nibble::serial();
    CHECK(&one == &nibble::serial());
    CHECK(one.concurrency() == 1);
    std::vector<Index> order;
    const auto caller = std::this_thread::get_id();
    one.parallel_for(5, [&](Index i) {
        CHECK(std::this_thread::get_id() == caller);
        order.push_back(i);
    });
    CHECK(order == std::vector<Index>{0, 1, 2, 3, 4});
    nibble::serial_executor own;
    executor_checks::runs_each_task_once(own);
    executor_checks::carries_exceptions(own);
    executor_checks::nests(own);
}

TEST_CASE("any parallel_for is an executor", "[executor]") {
    for (const int threads : {1, 2, 5}) {
        auto e = nibble::make_executor(threads, spawning{threads});
        CHECK(e.concurrency() == threads);
        executor_checks::runs_each_task_once(e);
        executor_checks::carries_exceptions(e);
        executor_checks::nests(e);
    }
    // A function that is kept by reference, and one that moves only.
    const spawning<> two{2};
    auto by_reference = nibble::make_executor(2, [&two](Index n, auto body) { two(n, body); });
    executor_checks::runs_each_task_once(by_reference);
    auto owner = nibble::make_executor(2, [p = std::make_unique<spawning<>>(two)](Index n, auto body) { (*p)(n, body); });
    executor_checks::runs_each_task_once(owner);
}

TEST_CASE("tasks run on several threads at once", "[executor]") {
    auto e = nibble::make_executor(2, spawning{2});
    executor_checks::runs_two_at_once(e);
}

TEST_CASE("a parallel_for that leaves out tasks is an error", "[executor]") {
    auto lazy = nibble::make_executor(3, [](Index n, auto body) {
        for (Index i = 0; i + 1 < n; ++i) body(i);
    });
    const mistake m = of([&] { lazy.parallel_for(4, [](Index) {}); });
    CHECK(m.code == nibble::errc::invalid_argument);
    CHECK(contains(m.message, "of 4 tasks 3 were run"));
    const mistake none = of([] { static_cast<void>(nibble::make_executor(0, [](Index, auto) {})); });
    CHECK(none.code == nibble::errc::invalid_argument);
    CHECK(contains(none.message, "a concurrency of 0"));
}

TEST_CASE("a parallel_for allocates nothing", "[executor]") {
    auto loop = nibble::make_executor(4, [](Index n, auto body) {
        for (Index i = 0; i < n; ++i) body(i);
    });
    Index sum = 0;
    CHECK(allocations::of([&] { loop.parallel_for(100, [&](Index i) { sum += i; }); }) == 0);
    CHECK(allocations::of([&] { nibble::serial().parallel_for(100, [&](Index i) { sum += i; }); }) == 0);
    CHECK(sum == 2 * 4950);
    CHECK(allocations::of([] { static_cast<void>(std::vector<int>(3)); }) == 1);  // the count counts
}
