// Observers: numbers of PyTorch and of an implementation of TensorRT's searches in double, and what must not matter.
#include <nibble/calibration/observers.hpp>
#include <nibble/dequantize.hpp>
#include <nibble/integer_gemm.hpp>
#include <nibble/quantize.hpp>

#include <cmath>
#include <limits>
#include <string>

#include "support/catch.hpp"
#include "support/mistake.hpp"
#include "support/data.hpp"
#include "support/golden.hpp"

using Eigen::MatrixXf;
using nibble::activation_type;
using nibble::errc;
using nibble::value_range;
using extent = nibble::index;

namespace {

template <class Call>
std::pair<errc, std::string> refused(Call call) {
    mistake m = of(call);
    return {m.code, std::move(m.message)};
}

MatrixXf row(const std::vector<float>& v) { return Eigen::Map<const Eigen::RowVectorXf>(v.data(), static_cast<extent>(v.size())); }

double off(float got, double wanted) { return std::fabs(static_cast<double>(got) - wanted); }

}  // namespace

TEST_CASE("percentile, mse and entropy find the bins of an implementation in double", "[observers]") {
    const golden::file file("algorithms/calibration");
    struct histogram {
        const char* name;
        double width;
        double p99, p99_9, p99_99, p99_999, mse8, mse4, kl;
    };
    const histogram all[] = {
        {"H_g", 5.0 / 2048, 1054, 1344, 1566, 1656, 1524, 1012, 1666},
        {"H_l", 16.0 / 2048, 588, 878, 1136, 1226, 1127, 613, 1237},
        {"H_s", 20.0 / 2048, 264, 339, 440, 1880, 1524, 260, 450},
        {"sample", 0.007462683661475131, 365, 861, 1753, 2047, 1778, 532, 1754},
    };
    for (const histogram& h : all) {
        CAPTURE(h.name);
        const std::vector<double> counts = file.read<double>(std::string(h.name) + ".counts");
        REQUIRE(counts.size() == 2048);
        const auto bin = [&](double limit) { return std::round(limit / h.width); };
        CHECK(bin(nibble::percentile_limit(counts, h.width, 99.0)) == h.p99);
        CHECK(bin(nibble::percentile_limit(counts, h.width, 99.9)) == h.p99_9);
        CHECK(bin(nibble::percentile_limit(counts, h.width, 99.99)) == h.p99_99);
        CHECK(bin(nibble::percentile_limit(counts, h.width, 99.999)) == h.p99_999);
        CHECK(bin(nibble::mse_limit(counts, h.width, 127)) == h.mse8);
        CHECK(bin(nibble::mse_limit(counts, h.width, 7)) == h.mse4);
        CHECK(std::fabs(bin(nibble::entropy_limit(counts, h.width)) - h.kl) <= 2.0);
    }
}

TEST_CASE("entropy does not look at the first bin, where zeros pile up", "[observers]") {
    std::vector<double> counts = golden::file("algorithms/calibration").read<double>("H_g.counts");
    const double limit = nibble::entropy_limit(counts, 1.0);
    counts[0] = 1e12;
    CHECK(nibble::entropy_limit(counts, 1.0) == limit);
}

TEST_CASE("a histogram of one value, of none, and merging either way", "[observers]") {
    nibble::histogram_observer seen(1), empty(1);
    seen.add(MatrixXf::Constant(1, 10, 2.0f));
    CHECK(seen.range() == value_range{2.0f, 2.0f});
    seen.add(MatrixXf::Constant(1, 5, 2.0f));
    empty.merge(seen);
    CHECK(empty.range() == value_range{2.0f, 2.0f});
    MatrixXf ends(1, 2);
    ends << 0.0f, 4.0f;
    for (nibble::histogram_observer* h : {&seen, &empty}) {
        h->add(ends);
        CHECK(h->counts()[0] == 1.0);
        CHECK(h->counts()[1024] == 15.0);
        CHECK(h->counts()[2047] == 1.0);
    }
    nibble::histogram_observer narrow(4), wide(4);
    narrow.add(data::matrix(4, 500, 8));
    wide.add(10.0f * data::matrix(4, 500, 9) + MatrixXf::Constant(4, 500, 15.0f));
    nibble::histogram_observer other = wide;
    other.merge(narrow);
    narrow.merge(wide);
    CHECK(std::equal(narrow.counts().begin(), narrow.counts().end(), other.counts().begin()));
    CHECK(narrow.seen() == other.seen());
}

TEST_CASE("the search of PyTorch's HistogramObserver, on its histograms", "[observers]") {
    const golden::file file("pytorch/observers");
    struct search {
        const char* name;
        int levels;
        double width;
        extent start, end;
    };
    for (const search& s : {search{"search.phi5", 256, 10.0 / 2048, 249, 1797}, search{"search.phi5", 16, 10.0 / 2048, 364, 1569},
                            search{"search.phi5_outliers", 256, 10.0 / 2048, 197, 1821}, search{"search.phi5_outliers", 16, 10.0 / 2048, 369, 1570},
                            search{"search.phi_wide", 256, 40.0 / 2048, 823, 1221}, search{"search.phi_wide", 16, 40.0 / 2048, 840, 1159}}) {
        CAPTURE(s.name, s.levels);
        const std::vector<float> f = file.read_floats(std::string(s.name) + ".counts");
        const std::vector<double> counts(f.begin(), f.end());
        const auto [start, end] = nibble::search_range(counts, s.width, s.levels);
        CHECK(std::abs(start - s.start) <= 2);
        CHECK(std::abs(end - s.end) <= 2);
    }
}

TEST_CASE("PyTorch's HistogramObserver: counts and ranges", "[observers]") {
    const golden::file file("pytorch/observers");
    struct set {
        const char* name;
        int batches;
        double low, high;  // of the search
        double total;
    };
    for (const set& s : {set{"normal6", 6, -5.331523895263672, 7.373390197753906, 2007}, set{"grow", 4, -14.313355445861816, 13.613446235656738, 12000},
                         set{"outlier", 1, -35.0, 39.96337890625, 20002}, set{"positive", 2, 1.0000972747802734, 8.35466194152832, 10000},
                         set{"same_range", 3, -1.5625, 1.56097412109375, 1515}, set{"single_batch", 1, -3.884155035018921, 3.8075859546661377, 20000}}) {
        CAPTURE(s.name);
        nibble::histogram_observer seen(1), first(1), second(1);
        for (int i = 0; i < s.batches; ++i) {
            const std::string batch = "batch" + std::to_string(i);
            const std::string own = std::string("histogram.") + s.name + "." + batch;
            const MatrixXf x = row(file.read_floats(file.contains(own) ? own : batch));
            seen.add(x);
            (i % 2 == 0 ? first : second).add(x);
        }
        const std::vector<float> wanted = file.read_floats(std::string("histogram.") + s.name + ".counts");
        double difference = 0.0, sum = 0.0, apart = 0.0;
        for (std::size_t i = 0; i < 2048; ++i) {
            sum += seen.counts()[i];
            difference += std::fabs(seen.counts()[i] - static_cast<double>(wanted[i]));
        }
        CHECK(sum == Approx(s.total).epsilon(1e-12));  // none is lost
        CHECK(difference <= 2e-3 * s.total);           // PyTorch places values at edges by float arithmetic
        const value_range r = seen.range();
        const double width = (static_cast<double>(seen.seen().high) - static_cast<double>(seen.seen().low)) / 2048.0;
        CHECK(off(r.low, s.low) <= 2.01 * width);
        CHECK(off(r.high, s.high) <= 2.01 * width);
        first.merge(second);
        for (std::size_t i = 0; i < 2048; ++i) apart += first.counts()[i];
        CHECK(apart == Approx(s.total).epsilon(1e-12));
        CHECK(first.seen() == seen.seen());
        CHECK(off(first.range().high, static_cast<double>(r.high)) < 0.05 * static_cast<double>(r.high));
    }
}

TEST_CASE("PyTorch's moving average", "[observers]") {
    const golden::file file("pytorch/observers");
    const std::vector<float> wanted = file.read_floats("moving_average.qint8.affine.min_max_after_each_batch");
    nibble::moving_average_observer seen(1);
    for (std::size_t i = 0; i < 6; ++i) {
        seen.add(row(file.read_floats("batch" + std::to_string(i))));
        CHECK(off(seen.range().low, static_cast<double>(wanted[2 * i])) <= 1e-6 * std::fabs(static_cast<double>(wanted[2 * i])));
        CHECK(off(seen.range().high, static_cast<double>(wanted[2 * i + 1])) <= 1e-6 * static_cast<double>(wanted[2 * i + 1]));
        CHECK(seen.range(0) == seen.range());
    }
    const nibble::activation_rule i8 = nibble::static_activations(seen.range(), activation_type::i8);
    const nibble::activation_rule u8 = nibble::static_activations(seen.range(), activation_type::u8);
    CHECK_FALSE(i8.dynamic);
    CHECK(off(u8.scale, 0.02475082501769066) < 1e-7);
    CHECK(u8.zero == 122);
    CHECK(i8.zero == 0);
    CHECK(off(i8.scale, 0.02575986459851265 * 127.5 / 127.0) < 1e-7);  // PyTorch divides by 127.5

    // a constant batch is a fixed point, and is approached like (1 - c)^n
    nibble::moving_average_observer still(2, 0.25f);
    MatrixXf x(2, 3);
    x << 1, 2, 3, -4, 0, 4;
    still.add(x);
    still.add(x);
    CHECK(still.range() == value_range{-4.0f, 4.0f});
    for (int i = 0; i < 5; ++i) still.add(MatrixXf::Constant(2, 1, 8.0f));
    CHECK(off(still.range().high, 8.0 + (4.0 - 8.0) * std::pow(0.75, 5)) < 1e-5);
    CHECK(off(still.range(0).low, 8.0 + (1.0 - 8.0) * std::pow(0.75, 5)) < 1e-5);
}

TEST_CASE("min and max: batches, order and threads do not matter", "[observers]") {
    const MatrixXf x = data::matrix(17, 1500, 1, data::distribution::student_t4);
    nibble::min_max_observer whole(17), parts(17), other(17);
    whole.add(x);
    parts.add(x.rightCols(700));
    parts.add(MatrixXf(17, 0));
    other.add(x.leftCols(800));
    parts.merge(other);
    parts.merge(nibble::min_max_observer(17));
    CHECK(whole.range() == value_range{x.minCoeff(), x.maxCoeff()});
    CHECK(parts.range() == whole.range());
    for (extent k = 0; k < 17; ++k) {
        CHECK(whole.range(k) == value_range{x.row(k).minCoeff(), x.row(k).maxCoeff()});
        CHECK(parts.range(k) == whole.range(k));
    }
    nibble::min_max_observer empty(17);
    empty.merge(whole);
    CHECK(empty.range() == whole.range());
    nibble::min_max_observer one_sided(1);
    one_sided.add(MatrixXf::Constant(1, 4, 3.0f));  // zero was not seen
    CHECK(one_sided.range() == value_range{3.0f, 3.0f});
}

TEST_CASE("a histogram of magnitudes is exact, whatever the order", "[observers]") {
    MatrixXf x = data::matrix(8, 3000, 2);
    x(3, 2999) = -77.0f;  // the last token makes the range grow
    x(0, 0) = 0.0f;
    nibble::magnitude_histogram whole(8), forward(8), backward(8), merged(8), other(8);
    whole.add(x);
    for (extent t = 0; t < 3000; t += 250) forward.add(x.middleCols(t, 250));
    for (extent t = 2750; t >= 0; t -= 250) backward.add(x.middleCols(t, 250));
    merged.add(x.leftCols(1000));
    other.add(x.rightCols(2000));
    merged.merge(other);
    other.merge(nibble::magnitude_histogram(8));
    nibble::magnitude_histogram reverse(8);
    reverse.add(x.rightCols(2000));
    nibble::magnitude_histogram left(8);
    left.add(x.leftCols(1000));
    reverse.merge(left);
    CHECK(whole.width() == 1.0 / 32.0);  // 77 lies in the upper half of 4096 / 32 = 128
    std::vector<double> counts(4096, 0.0);
    for (extent i = 0; i < x.size(); ++i) counts[static_cast<std::size_t>(std::fabs(x.data()[i]) * 32.0f)] += 1.0;
    for (const auto* h : {&whole, &forward, &backward, &merged, &reverse}) {
        CHECK(h->width() == whole.width());
        CHECK(std::equal(counts.begin(), counts.end(), h->counts().begin()));
        CHECK(h->range() == whole.range());
        CHECK(h->entropy() == whole.entropy());
    }
    // the search for the range leaves the outlier out where that pays
    CHECK(whole.percentile(99.9).high < 4.0f);
    CHECK(whole.percentile(100.0).low <= -76.9f);
    CHECK(whole.least_squares(7).high < 8.0f);
    CHECK(whole.entropy().low > -77.0f);

    nibble::magnitude_histogram zeros(2);
    zeros.add(MatrixXf::Zero(2, 10));
    CHECK(zeros.counts()[0] == 20.0);
    CHECK(zeros.entropy() == value_range{0.0f, 0.0f});
    CHECK(zeros.least_squares() == value_range{0.0f, 0.0f});
    for (const float largest : {1e-45f, 1e-30f, 3e38f}) {
        nibble::magnitude_histogram h(1);
        h.add(MatrixXf::Constant(1, 3, largest));
        h.add(MatrixXf::Zero(1, 2));
        CHECK(h.counts()[0] == 2.0);
        double sum = 0.0;
        for (const double c : h.counts()) sum += c;
        CHECK(sum == 5.0);
        CHECK(h.percentile(100.0).high <= largest);
    }
}

TEST_CASE("least squares lands in the optimum of a normal distribution", "[observers]") {
    const MatrixXf x = data::matrix(64, 4000, 3);
    nibble::magnitude_histogram seen(64);
    seen.add(x);
    const double rmse[] = {.21647, .11353, .00940};  // of the best symmetric grids of 3, 4 and 8 bits
    const int levels[] = {3, 7, 127};
    for (int i = 0; i < 3; ++i) {
        const double step = static_cast<double>(seen.least_squares(levels[i]).high) / levels[i];
        double sum = 0.0;
        for (extent j = 0; j < x.size(); ++j) {
            const double v = static_cast<double>(x.data()[j]);
            const double e = v - step * std::max(-1.0 * levels[i], std::min(1.0 * levels[i], std::nearbyint(v / step)));
            sum += e * e;
        }
        CHECK(sum / static_cast<double>(x.size()) <= 1.03 * rmse[i] * rmse[i]);
    }
}

TEST_CASE("calibrated int8 products: a clipped range beats the whole one on long tails", "[observers]") {
    MatrixXf x = data::matrix(128, 600, 4);
    x(5, 7) = 400.0f;
    nibble::min_max_observer range(128);
    nibble::magnitude_histogram seen(128);
    nibble::histogram_observer histogram(128);
    range.add(x);
    seen.add(x);
    histogram.add(x);
    const MatrixXf fresh = data::matrix(128, 50, 5);
    const nibble::qmatrix w = nibble::quantize<nibble::int8_per_channel>(data::matrix(32, 128, 6));
    const MatrixXf exact = nibble::dequantize(w) * fresh;
    const auto error = [&](value_range r) {
        MatrixXf y(32, 50);
        nibble::integer_gemm(w, nibble::quantize_activations(fresh, nibble::static_activations(r)), y);
        return (y - exact).norm() / exact.norm();
    };
    const float whole = error(range.range());
    CHECK(whole > 0.2f);
    CHECK(error(seen.percentile(99.99)) < 0.05f);
    // A lone outlier far from all else leaves the last bin of every clipped range empty: entropy then keeps it all.
    CHECK(seen.entropy() == seen.range());
    nibble::magnitude_histogram tails(128);
    tails.add(x.cwiseMax(-60.0f).cwiseMin(60.0f) + data::matrix(128, 600, 7, data::distribution::student_t4));
    CHECK(tails.entropy().high < 0.7f * tails.range().high);
    CHECK(error(tails.entropy()) < 0.5f * error(tails.range()));
}

TEST_CASE("observers refuse, and keep what they have", "[observers]") {
    MatrixXf bad = MatrixXf::Ones(3, 700);
    bad(1, 666) = std::numeric_limits<float>::infinity();
    const auto check = [&](auto observer) {
        CHECK(refused([&] { (void)observer.add(bad); }).first == errc::non_finite);
        CHECK(refused([&] { (void)observer.add(bad); }).second.find("X(1, 666) is inf") != std::string::npos);
        CHECK(refused([&] { observer.add(MatrixXf::Ones(4, 1)); }).first == errc::shape_mismatch);
        observer.add(MatrixXf(3, 0));
        return observer;
    };
    CHECK(refused([&] { (void)check(nibble::min_max_observer(3)).range(); }).first == errc::invalid_argument);
    CHECK(refused([&] { (void)check(nibble::moving_average_observer(3)).range(); }).first == errc::invalid_argument);
    CHECK(refused([&] { (void)check(nibble::magnitude_histogram(3)).range(); }).first == errc::invalid_argument);
    CHECK(refused([&] { (void)check(nibble::magnitude_histogram(3)).entropy(); }).first == errc::invalid_argument);
    CHECK(refused([&] { (void)check(nibble::histogram_observer(3)).range(); }).first == errc::invalid_argument);
    CHECK(refused([] { nibble::min_max_observer(0); }).first == errc::invalid_argument);
    CHECK(refused([] { nibble::moving_average_observer(1, 1.5f); }).first == errc::invalid_argument);
    nibble::min_max_observer three(3);
    CHECK(refused([&] { three.merge(nibble::min_max_observer(4)); }).first == errc::shape_mismatch);
    three.add(MatrixXf::Ones(3, 1));
    CHECK(refused([&] { (void)three.range(3); }).first == errc::out_of_range);
    CHECK(refused([] { (void)nibble::static_activations({2.0f, 1.0f}); }).first == errc::invalid_argument);
    CHECK(refused([] { (void)nibble::static_activations({0.0f, std::numeric_limits<float>::quiet_NaN()}); }).first == errc::invalid_argument);
    const std::vector<double> counts(10, 1.0);
    CHECK(refused([&] { (void)nibble::percentile_limit(counts, 1.0, 0.0); }).first == errc::invalid_argument);
    CHECK(refused([&] { (void)nibble::percentile_limit({}, 1.0, 50.0); }).first == errc::invalid_argument);
    CHECK(refused([&] { (void)nibble::mse_limit(counts, 0.0, 7); }).first == errc::invalid_argument);
    CHECK(refused([&] { (void)nibble::mse_limit(counts, 1.0, 0); }).first == errc::invalid_argument);
    CHECK(refused([&] { (void)nibble::entropy_limit(counts, 1.0, 0); }).first == errc::invalid_argument);
    CHECK(refused([&] { (void)nibble::search_range(counts, 1.0, 0); }).first == errc::invalid_argument);
    CHECK(nibble::entropy_limit(counts, 1.0) == 10.0);  // fewer bins than levels: all of it
}
