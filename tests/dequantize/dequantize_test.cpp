// Decoded weights: the formula of each offset kind, bit for bit, whole, by rows and by elements, at every level; and
// proof that no compiler contracts its multiply and add.
#include <nibble/nibble.hpp>

#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/for_each_isa.hpp"
#include "support/reference.hpp"

using Eigen::MatrixXf;
using nibble::offset_kind;
using nibble::qmatrix;
using reference::tally;
using Index = nibble::index;

namespace {

/// Whole, row by row and element by element against the definition, at every level.
void compare(const std::string& what, const qmatrix& w, tally& t) {
    const reference::weights read = reference::read(w);
    for_each_isa([&](nibble::isa level) {
        MatrixXf whole = MatrixXf::Constant(w.rows(), w.cols(), 12345.0f);
        nibble::dequantize(w, whole);
        std::vector<float> row(static_cast<std::size_t>(w.cols()));
        for (Index n = 0; n < w.rows(); ++n) {
            nibble::dequantize_row(w, n, row.data());
            for (Index k = 0; k < w.cols(); ++k) {
                const std::uint32_t wanted = reference::bits_from_float(reference::decode(read, n, k));
                const bool good = reference::bits_from_float(whole(n, k)) == wanted &&
                                  reference::bits_from_float(row[static_cast<std::size_t>(k)]) == wanted &&
                                  reference::bits_from_float(w(n, k)) == wanted;
                t.check(good, [&] {
                    return what + " at " + nibble::name_of(level) + ": (" + std::to_string(n) + ", " +
                           std::to_string(k) + ")";
                });
            }
        }
    });
}

}  // namespace

TEST_CASE("every recipe decodes to its formula", "[dequantize]") {
    CAPTURE(data::seed());
    const reference::default_environment environment;
    tally t;
    std::size_t count = 0;
    for (const nibble::recipe& r : nibble::recipes())
        for (const auto& [rows, cols] : {std::pair<Index, Index>(19, 300), {1, 1}, {16, 513}}) {
            ++count;
            compare(r.name, nibble::quantize(data::matrix(rows, cols, count), r.name), t);
        }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(count == 3 * nibble::recipes().size());
    CHECK(t.cases() == nibble::recipes().size() * supported_isas().size() * (19 * 300 + 1 + 16 * 513));
}

TEST_CASE("every code of every format decodes to its formula", "[dequantize]") {
    const reference::default_environment environment;
    tally t;
    for (const nibble::code_format* f : nibble::formats()) {
        if (f->bits == 16) {
            compare(f->name, data::random_codes(17, 300, *f, nibble::scales::none, offset_kind::none, {1, 0}, 7), t);
            continue;
        }
        for (const nibble::scale_scheme& s :
             {nibble::scales::f32, nibble::scales::f16, nibble::scales::bf16, nibble::scales::e8m0,
              nibble::scales::e4m3, nibble::scales::e4m3_f32, nibble::scales::double_quantized,
              nibble::scales::two_level(6, false, 8), nibble::scales::two_level(6, true, 8)})
            compare(f->name, data::random_codes(17, 300, *f, s, offset_kind::none, {1, 20}, 8), t);
        if (f->decode != nibble::decode_class::integer || f == &nibble::binary::format || f == &nibble::ternary::format)
            continue;
        for (const offset_kind kind : {offset_kind::zero_point, offset_kind::float_zero, offset_kind::minimum})
            for (const nibble::scale_scheme& s : {nibble::scales::f32, nibble::scales::f16, nibble::scales::bf16})
                compare(f->name, data::random_codes(17, 300, *f, s, kind, {1, 20}, 9), t);
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == (2 + 19 * 9 + 6 * 9) * supported_isas().size() * 17 * 300);
}

TEST_CASE("a multiply and an add stay two roundings", "[dequantize][contraction]") {
    // GCC contracts even an intrinsic multiply and add into an fma where the target has one. w = f32(s u) + m tells:
    // for these scales and minima an fma gives another float for thousands of weights, and the library must not give
    // that.
    CAPTURE(data::seed());
    data::random r(1);
    nibble::qmatrix_builder b(32, 512, nibble::int8::format, nibble::scales::f32, offset_kind::minimum,
                              nibble::per_group{8});
    for (Index n = 0; n < 32; ++n) {
        for (Index g = 0; g < 64; ++g) {
            b.set_scale(n, g, reference::bits_from_float(static_cast<float>(0.5 + r.unit())));
            b.set_offset(n, g, reference::bits_from_float(static_cast<float>(-100.0 * r.unit())));
        }
        for (Index k = 0; k < 512; ++k) b.set_code(n, k, static_cast<unsigned>(r.below(256)));
    }
    const qmatrix w = std::move(b).finish();
    const reference::default_environment environment;
    for_each_isa([&](nibble::isa) {
        const MatrixXf decoded = nibble::dequantize(w);
        Index fused_differs = 0;
        Index wrong = 0;
        for (Index n = 0; n < 32; ++n)
            for (Index k = 0; k < 512; ++k) {
                const float s = w.scale(n, k / 8);
                const float m = w.offset(n, k / 8);
                const float u = static_cast<float>(w.code(n, k));
                const float separate = reference::rounded_sum(reference::rounded_product(s, u), m);
                if (reference::bits_from_float(std::fma(s, u, m)) != reference::bits_from_float(separate))
                    ++fused_differs;
                if (reference::bits_from_float(decoded(n, k)) != reference::bits_from_float(separate)) ++wrong;
            }
        CHECK(fused_differs > 1000);  // the test can tell
        CHECK(wrong == 0);
    });
}

TEST_CASE("the code of a float zero is chosen with two roundings", "[dequantize][contraction]") {
    // code = clamp(RNE(f32(f32(w inv) + zero))): near a tie an fma chooses the other code.
    CAPTURE(data::seed());
    const reference::default_environment environment;
    data::random r(2);
    MatrixXf dense(16, 4096);
    for (Index n = 0; n < 16; ++n) {
        const float width = static_cast<float>(10.0 + r.unit());
        const float zero = static_cast<float>(-3.0 * r.unit());
        for (Index k = 0; k < 4096; ++k)  // on the ties of a grid of 255 steps, give or take a few last places
            dense(n, k) =
                static_cast<float>(static_cast<double>(zero) +
                                   static_cast<double>(width) * (static_cast<double>(r.below(255)) + 0.5) / 255.0);
        dense(n, 0) = zero;
        dense(n, 1) = zero + width;
    }
    const qmatrix w = nibble::quantize<nibble::int8>(dense, nibble::float_zero{}, nibble::per_channel{});
    Index fused_differs = 0;
    Index wrong = 0;
    for (Index n = 0; n < 16; ++n) {
        const float inverse = 1.0f / w.scale(n, 0);
        const float zero = w.offset(n, 0);
        for (Index k = 0; k < 4096; ++k) {
            const float separate = reference::rounded_sum(reference::rounded_product(dense(n, k), inverse), zero);
            const auto code = [](float t) {
                return static_cast<unsigned>(std::min(std::max(std::nearbyint(t), 0.0f), 255.0f));
            };
            if (code(separate) != code(std::fma(dense(n, k), inverse, zero))) ++fused_differs;
            if (w.code(n, k) != code(separate)) ++wrong;
        }
    }
    CHECK(fused_differs > 100);
    CHECK(wrong == 0);
}

TEST_CASE("dequantize writes any layout and nothing beside it", "[dequantize]") {
    const qmatrix w = nibble::quantize<nibble::int4>(data::matrix(19, 70, 1));
    const MatrixXf wanted = nibble::dequantize(w);
    Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> row_major(19, 70);
    nibble::dequantize(w, row_major);
    CHECK(data::bits_differing(row_major, wanted) == 0);
    MatrixXf transposed(70, 19);
    nibble::dequantize(w, transposed.transpose());
    CHECK(data::bits_differing(transposed.transpose().eval(), wanted) == 0);
    MatrixXf wide = MatrixXf::Constant(30, 80, 42.0f);
    MatrixXf wide_wanted = wide;
    wide_wanted.block(5, 6, 19, 70) = wanted;
    nibble::dequantize(w, wide.block(5, 6, 19, 70));
    CHECK(data::bits_differing(wide, wide_wanted) == 0);
    std::vector<float> memory(19 * 70, 0.0f);
    nibble::dequantize(w, nibble::float_view{memory.data() + 19 * 70 - 1, 19, 70, -1, -19});  // backwards
    CHECK(data::bits_differing(Eigen::Map<MatrixXf>(memory.data(), 19, 70), wanted.reverse().eval()) == 0);
}

TEST_CASE("zero rows and zero groups decode to exact zeros", "[dequantize]") {
    // nibble's own rules; formats of other libraries keep their bytes, but decode zeros to zeros, too.
    MatrixXf dense = data::matrix(20, 256, 5);
    dense.row(3).setZero();
    dense.row(7).setConstant(-0.0f);
    dense.block(9, 0, 1, 128).setZero();
    for (const nibble::recipe& r : nibble::recipes()) {
        CAPTURE(r.name);
        const qmatrix w = nibble::quantize(dense, r.name);
        const MatrixXf back = nibble::dequantize(w);
        // A scale that more than the zeros share may make them what its format has instead of zero: binary and iq4_nl.
        const bool has_zero = std::string(r.name) != "iq4_xs" || w.scale(3, 0) == 0.0f;
        if (has_zero) {
            CHECK((back.row(3).array() == 0.0f).all());
            CHECK((back.row(7).array() == 0.0f).all());
        }
        CHECK(back.allFinite());
    }
}
