// What every executor must do. Each function ends in assertions; the data it shares among threads is plain memory, so
// that ThreadSanitizer sees what parallel_for orders and what it does not.
#pragma once

#include <nibble/executor.hpp>

#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "support/catch.hpp"

namespace executor_checks {

/// Every index once, and what the tasks wrote is there afterwards.
inline void runs_each_task_once(nibble::executor& threads) {
    CHECK(threads.concurrency() >= 1);
    for (const nibble::index tasks : {0, 1, 2, 3, 7, 64, 1000}) {
        std::vector<int> runs(static_cast<std::size_t>(tasks), 0);
        threads.parallel_for(tasks, [&](nibble::index i) { ++runs[static_cast<std::size_t>(i)]; });
        INFO(tasks << " tasks");
        CHECK(runs == std::vector<int>(static_cast<std::size_t>(tasks), 1));
    }
    bool ran = false;
    threads.parallel_for(-5, [&](nibble::index) { ran = true; });
    CHECK_FALSE(ran);
    struct {  // neither const nor copyable
        std::vector<nibble::index> seen = std::vector<nibble::index>(5, -1);
        void operator()(nibble::index i) { seen[static_cast<std::size_t>(i)] = i; }
    } body;
    threads.parallel_for(5, body);
    CHECK(body.seen == std::vector<nibble::index>{0, 1, 2, 3, 4});
}

/// What parallel_for threw, or "".
template <class Body>
std::string thrown(nibble::executor& threads, nibble::index tasks, Body body) {
    try {
        threads.parallel_for(tasks, body);
    } catch (const std::runtime_error& e) {
        return e.what();
    }
    return {};
}

/// An exception of a body reaches the caller, one of them if there are several, and the executor works afterwards.
inline void carries_exceptions(nibble::executor& threads) {
    for (int round = 0; round < 20; ++round) {
        CHECK(thrown(threads, 40, [](nibble::index i) {
                  if (i == 17) throw std::runtime_error("task 17");
              }) == "task 17");
        const std::string one = thrown(threads, 40, [](nibble::index i) { throw std::runtime_error("task " + std::to_string(i)); });
        CHECK(one.substr(0, 5) == "task ");
        CHECK(thrown(threads, 1, [](nibble::index) { throw std::runtime_error("alone"); }) == "alone");
    }
    int kind = 0;
    try {
        threads.parallel_for(3, [](nibble::index) { throw 42; });
    } catch (int number) {
        kind = number;
    }
    CHECK(kind == 42);
    runs_each_task_once(threads);
}

/// Loops in loops, to a depth of three, with exceptions from the innermost.
inline void nests(nibble::executor& threads) {
    std::vector<int> runs(6 * 5 * 4, 0);
    threads.parallel_for(6, [&](nibble::index a) {
        threads.parallel_for(5, [&, a](nibble::index b) {
            threads.parallel_for(4, [&, a, b](nibble::index c) { ++runs[static_cast<std::size_t>((a * 5 + b) * 4 + c)]; });
        });
    });
    CHECK(runs == std::vector<int>(6 * 5 * 4, 1));
    CHECK(thrown(threads, 6, [&](nibble::index a) {
              threads.parallel_for(5, [&, a](nibble::index b) {
                  if (a == 3 && b == 2) throw std::runtime_error("inner");
              });
          }) == "inner");
}

/// Two tasks that wait for each other: one on the calling thread, one on another.
inline void runs_two_at_once(nibble::executor& threads) {
    std::atomic<int> begun{0};
    std::vector<std::thread::id> ids(2);
    threads.parallel_for(2, [&](nibble::index i) {
        ids[static_cast<std::size_t>(i)] = std::this_thread::get_id();
        ++begun;
        while (begun.load() < 2) std::this_thread::yield();
    });
    CHECK(ids[0] != ids[1]);
    CHECK((ids[0] == std::this_thread::get_id() || ids[1] == std::this_thread::get_id()));
}

}  // namespace executor_checks
