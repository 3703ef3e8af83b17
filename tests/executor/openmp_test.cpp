// The executor on OpenMP's threads; this file is compiled with OpenMP.
#include <nibble/executors/openmp.hpp>

#include <vector>

#include "support/executor_checks.hpp"
#include "support/mistake.hpp"

TEST_CASE("OpenMP's threads", "[executor]") {
    for (const int threads : {0, 1, 2, 5}) {
        nibble::openmp_executor e(threads);
        CHECK(e.concurrency() == (threads == 0 ? omp_get_max_threads() : threads));
        executor_checks::runs_each_task_once(e);
        executor_checks::carries_exceptions(e);
        executor_checks::nests(e);
        if (threads > 1) executor_checks::runs_two_at_once(e);
    }
    const mistake m = of([] { nibble::openmp_executor(-2); });
    CHECK(m.code == nibble::errc::invalid_argument);
    CHECK(contains(m.message, "-2 threads"));
}

TEST_CASE("inside a parallel region of the program", "[executor]") {
    nibble::openmp_executor e(2);
    std::vector<int> runs(2 * 20, 0);
#pragma omp parallel num_threads(2)
    {
        const int t = omp_get_thread_num();
        e.parallel_for(20, [&](nibble::index i) { ++runs[static_cast<std::size_t>(20 * t + i)]; });
    }
    CHECK(runs == std::vector<int>(2 * 20, 1));
}
