// A parallel_for as a program might have it: threads of its own, indices handed out one by one.
//
//   auto threads = nibble::make_executor(3, spawning{3});
//
// `prepare` runs on every thread that takes part, before its first task, and `finish` after its last.
#pragma once

#include <nibble/error.hpp>

#include <atomic>
#include <thread>
#include <vector>

struct nothing_to_do {
    void operator()() const {}
};

template <class Prepare = nothing_to_do, class Finish = nothing_to_do>
struct spawning {
    int threads;
    Prepare prepare{};
    Finish finish{};

    template <class Body>
    void operator()(nibble::index n, Body body) const {
        std::atomic<nibble::index> next{0};
        const auto work = [&] {
            prepare();
            for (nibble::index i = next++; i < n; i = next++) body(i);
            finish();
        };
        std::vector<std::thread> helpers;
        for (int t = 1; t < threads; ++t) helpers.emplace_back(work);
        work();
        for (std::thread& t : helpers) t.join();
    }
};
spawning(int) -> spawning<>;
template <class Prepare, class Finish>
spawning(int, Prepare, Finish) -> spawning<Prepare, Finish>;
