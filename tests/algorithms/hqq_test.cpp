// HQQ: codes, zeros and errors of an implementation in double and of hqq itself; bad input.
#include <nibble/algorithms/hqq.hpp>

#include <cmath>
#include <limits>
#include <string>

#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/golden.hpp"
#include "support/mistake.hpp"

using Eigen::MatrixXf;
using extent = nibble::index;
using nibble::errc;

namespace {

const nibble::float_zero float_zero;
using rows_matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

template <class Format>
nibble::quantize_plan plan(extent group) {
    return nibble::make_plan(nibble::format_handle(Format::format), float_zero, nibble::per_group{group}, nibble::scales::f32);
}

nibble::quantize_plan plan_of(int bits, extent group) {
    return bits == 2 ? plan<nibble::int2>(group) : bits == 3 ? plan<nibble::int3>(group) : bits == 4 ? plan<nibble::int4>(group) : plan<nibble::int8>(group);
}

struct difference {
    int codes = 0;
    double zero = 0.0, scale = 0.0;
};

/// Groups of the reference are the rows of its arrays, those of W one after the other.
difference compare(const golden::file& file, const std::string& prefix, const nibble::qmatrix& q, bool official) {
    const std::vector<std::uint8_t> codes = file.read<std::uint8_t>(prefix + ".codes");
    std::vector<double> scale, zero;
    if (official) {
        const std::vector<float> s = file.read_floats(prefix + ".scale"), z = file.read_floats(prefix + ".zero");
        for (const float x : s) scale.push_back(1.0 / static_cast<double>(x));
        zero.assign(z.begin(), z.end());
    } else {
        scale = file.read<double>(prefix + ".inv_scale");
        zero = file.read<double>(prefix + ".zero_final");
    }
    REQUIRE(codes.size() == static_cast<std::size_t>(q.rows() * q.cols()));
    difference d;
    for (extent n = 0; n < q.rows(); ++n)
        for (extent k = 0; k < q.cols(); ++k) d.codes += q.code(n, k) != codes[static_cast<std::size_t>(n * q.cols() + k)];
    for (extent n = 0; n < q.rows(); ++n)
        for (extent g = 0; g < q.groups(); ++g) {
            const auto at = static_cast<std::size_t>(n * q.groups() + g);
            d.zero = std::max(d.zero, std::fabs(static_cast<double>(q.offset(n, g)) - zero[at]));
            d.scale = std::max(d.scale, std::fabs(static_cast<double>(q.scale(n, g)) * scale[at] - 1.0));
        }
    return d;
}

MatrixXf read(const golden::file& file, const char* name) {
    const std::vector<float> v = file.read_floats(name);
    return Eigen::Map<const rows_matrix>(v.data(), 12, 128);
}

}  // namespace

TEST_CASE("codes, zeros and errors of an implementation in double, and of hqq", "[hqq]") {
    const golden::file file("algorithms/hqq");
    struct one { int bits; extent group; };
    for (const char* name : {"w", "wide"})
        for (const one c : {one{2, 16}, one{3, 32}, one{4, 32}, one{8, 32}}) {
            const std::string key = std::string(name) + ".b" + std::to_string(c.bits) + ".g" + std::to_string(c.group);
            CAPTURE(key);
            const nibble::hqq_result r = nibble::hqq(read(file, name), plan_of(c.bits, c.group));
            const difference d = compare(file, key, r.weights, false);
            CHECK(d.codes == 0);
            CHECK(d.zero < 1e-4);
            CHECK(d.scale < 1e-6);
            const std::vector<double> errors = file.read<double>(key + ".errors");
            REQUIRE(r.report.errors.size() == errors.size());
            for (std::size_t i = 0; i < errors.size(); ++i) CHECK(r.report.errors[i] == Approx(errors[i]).epsilon(1e-5));
            CHECK(r.report.mean_after == *std::min_element(r.report.errors.begin(), r.report.errors.end()));
            if (std::string(name) == "w") {  // where nothing is shrunk away hqq ends at the same zeros
                const difference o = compare(file, "official." + key, r.weights, true);
                CHECK(o.codes == 0);
                CHECK(o.zero < 1e-4);
            }
        }
}

TEST_CASE("the mean error falls, and is that of the weights", "[hqq]") {
    for (const int bits : {2, 3, 4}) {
        const MatrixXf w = data::matrix(64, 128, static_cast<std::uint64_t>(bits), data::distribution::student_t4);
        const nibble::quantize_plan p = plan_of(bits, 64);
        const nibble::hqq_result r = nibble::hqq(w, p);
        const auto mean = [&](const nibble::qmatrix& q) { return static_cast<double>((nibble::dequantize(q) - w).cwiseAbs().sum()) / (64.0 * 128.0); };
        CHECK(r.report.mean_after == Approx(mean(r.weights)).epsilon(1e-4));
        CHECK(r.report.mean_after < r.report.mean_before);
        nibble::hqq_options o;
        o.round_zero = false;
        CHECK(nibble::hqq(w, p, o).report.mean_before == Approx(mean(nibble::quantize(w, p))).epsilon(1e-4));
    }
    // f16 scales and zeros: the recipe
    const MatrixXf w = 0.05f * data::matrix(32, 200, 9);
    const nibble::hqq_result r = nibble::hqq(w, nibble::int4_hqq_g64::get());
    CHECK(r.weights.name() == "int4_hqq_g64");
    CHECK((nibble::dequantize(r.weights) - w).norm() < 0.97f * (nibble::dequantize(nibble::quantize(w, "int4_hqq_g64")) - w).norm());
}

TEST_CASE("threads change nothing; constant groups; tiny weights; stopping; what is refused", "[hqq]") {
    MatrixXf w = data::matrix(100, 96, 20);
    w.row(3).setZero();
    w.row(4).setConstant(-0.75f);
    const nibble::quantize_plan p = plan<nibble::int4>(32);
    const nibble::hqq_result r = nibble::hqq(w, p);
    const MatrixXf q = nibble::dequantize(r.weights);
    CHECK(q.row(3).isZero(0.0f));
    CHECK(q.row(4) == w.row(4));
    auto backwards = nibble::make_executor(2, [](extent tasks, nibble::task_body body) {
        for (extent i = tasks; i-- > 0;) body(i);
    });
    nibble::hqq_options o;
    o.executor = &backwards;
    CHECK(data::bits_differing(nibble::dequantize(nibble::hqq(w, p, o).weights), q) == 0);
    CHECK(data::bits_differing(nibble::dequantize(nibble::hqq(rows_matrix(w), p).weights), q) == 0);
    const MatrixXf tiny = 0x1p-30f * data::matrix(8, 64, 21);
    CHECK((nibble::dequantize(nibble::hqq(tiny, p).weights) - tiny).norm() < 0.15f * tiny.norm());
    CHECK(nibble::hqq(MatrixXf(0, 64), p).weights.rows() == 0);

    o.executor = nullptr;
    o.progress = [](extent done, extent) { return done < 2; };
    CHECK(contains(of([&] { (void)nibble::hqq(w, p, o); }).message, "cancelled after 2 of 20 iterations"));
    const auto refused = [&](const nibble::quantize_plan& with, nibble::hqq_options options = {}) { return of([&] { (void)nibble::hqq(w, with, options); }).code; };
    CHECK(refused(nibble::make_plan(nibble::int4_zero_g128::get())) == errc::unsupported);
    CHECK(refused(nibble::make_plan(nibble::format_handle(nibble::int4::format), float_zero, nibble::granularity{16, 32}, nibble::scales::f32)) == errc::unsupported);
    o = {};
    o.p = 0.0;
    CHECK(refused(p, o) == errc::invalid_argument);
    o = {};
    o.iterations = 0;
    CHECK(refused(p, o) == errc::invalid_argument);
    w(5, 40) = std::numeric_limits<float>::infinity();
    CHECK(contains(of([&] { (void)nibble::hqq(w, p); }).message, "W(5, 40) is inf"));
}
