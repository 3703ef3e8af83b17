// Row blocks: every number they give, and every product, is that of the rows of the whole matrix, bit for bit, for every
// recipe; and their bits, sizes and errors.
#include <nibble/io/ggml_blocks.hpp>
#include <nibble/nibble.hpp>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/for_each_isa.hpp"
#include "support/inspect.hpp"
#include "support/mistake.hpp"
#include "support/reference_formats.hpp"

using Eigen::MatrixXf;
using nibble::compute;
using nibble::errc;
using nibble::qmatrix;
using nibble::scale_storage;
using reference::tally;
using Index = nibble::index;

namespace {

constexpr Index rows = 300, depth = 200;

struct place {
    Index first, count;
};
// Whole panels and parts of them, whole tiles of 128 rows, rests of them, and one row that straddles nothing.
constexpr place places[] = {{0, 300}, {0, 16}, {16, 16}, {112, 48}, {128, 128}, {144, 33}, {256, 44}, {288, 12}, {272, 1}, {64, 0}, {0, 5}};

bool same_bits(float a, float b) { return nibble::detail::bits_of(a) == nibble::detail::bits_of(b); }

/// Codes, scales, offsets and weights of b are those of rows first .. of w.
void compare(tally& t, const qmatrix& w, const qmatrix& b, Index first, const std::string& what) {
    const nibble::detail::fp_environment environment;
    const bool two_level = w.scheme().storage == scale_storage::two_level;
    for (Index n = 0; n < b.rows(); ++n) {
        const Index m = first + n;
        bool good = true;
        for (Index k = 0; k < w.cols(); ++k) good = good && b.code(n, k) == w.code(m, k) && same_bits(b(n, k), w(m, k));
        for (Index g = 0; g < w.groups(); ++g)
            good = good && same_bits(b.scale(n, g), w.scale(m, g)) && same_bits(b.offset(n, g), w.offset(m, g)) &&
                   b.stored_scale(n, g) == w.stored_scale(m, g) && b.stored_offset(n, g) == w.stored_offset(m, g);
        for (Index s = 0; s < w.layout().supers && two_level; ++s)
            good = good && b.stored_super(n, s) == w.stored_super(m, s) &&
                   (w.offset_type() == nibble::offset_kind::none || b.stored_super(n, s, true) == w.stored_super(m, s, true));
        t.check(good, [&] { return what + ", row " + std::to_string(n); });
    }
}

}  // namespace

TEST_CASE("a row block is those rows of its matrix, for every recipe", "[rows]") {
    const MatrixXf dense = data::matrix(rows, depth, 1, data::distribution::student_t4);
    const MatrixXf x = data::matrix(depth, 3, 2);
    tally t;
    for (const nibble::recipe& r : nibble::recipes()) {
        const qmatrix w = nibble::quantize(dense, r.name);
        const MatrixXf decoded = nibble::dequantize(w);
        std::vector<MatrixXf> products;
        for (const compute c : {compute::strict_f32, compute::f32, compute::a16, compute::a8}) {
            products.emplace_back(rows, 3);
            nibble::gemm(w, x, products.back(), {.compute = c});
        }
        for (const place& p : places) {
            const qmatrix b = w.row_block(p.first, p.count);
            const std::string what = std::string(r.name) + " rows " + std::to_string(p.first) + " + " + std::to_string(p.count);
            const auto check = [&](bool good, const char* part) { t.check(good, [&] { return what + ": " + part; }); };
            check(b.rows() == p.count && b.cols() == depth, "the shape");
            check(b.name() == w.name() && &b.format() == &w.format() && b.scheme() == w.scheme(), "the format");
            check(b.data() == w.data() && b.memory_bytes() == w.memory_bytes(), "the memory is shared");
            compare(t, w, b, p.first, what);
            check(data::bits_differing(nibble::dequantize(b), decoded.middleRows(p.first, p.count)) == 0, "dequantize");
            std::vector<float> row(depth);
            if (p.count > 2) {
                nibble::dequantize_row(b, 2, row.data());
                check(data::bits_differing(Eigen::Map<MatrixXf>(row.data(), 1, depth), decoded.row(p.first + 2)) == 0, "dequantize_row");
            }
            for_each_isa([&](nibble::isa) {
                std::size_t i = 0;
                for (const compute c : {compute::strict_f32, compute::f32, compute::a16, compute::a8}) {
                    MatrixXf y(p.count, 3);
                    nibble::gemm(b, x, y, {.compute = c});
                    check(data::bits_differing(y, products[i++].middleRows(p.first, p.count)) == 0, nibble::name_of(c));
                }
            });
        }
        // A block of a block.
        const qmatrix inner = w.row_block(112, 180).row_block(48, 70).row_block(16, 20);
        compare(t, w, inner, 176, std::string(r.name) + " a block of a block of a block");
        t.check(data::bits_differing(nibble::dequantize(inner), decoded.middleRows(176, 20)) == 0, [&] { return std::string(r.name); });
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() > nibble::recipes().size() * std::size(places) * 10);
}

TEST_CASE("the bits of row blocks", "[rows]") {
    const MatrixXf dense = data::matrix(rows, depth, 1);
    tally t;
    for (const nibble::recipe& r : nibble::recipes()) {
        const qmatrix w = nibble::quantize(dense, r.name);
        for (const place& p : places) {
            const qmatrix b = w.row_block(p.first, p.count);
            // Codes; scales of the tiles that the rows touch; the second level.
            const Index tall = r.group.rows == 0 ? rows : r.group.rows;
            const Index tiles = p.count == 0 ? 0 : (p.first + p.count - 1) / tall - p.first / tall + 1;
            const auto& l = w.layout();
            double wanted = static_cast<double>(p.count * depth * l.bits + tiles * l.groups * (l.scale_bits + l.offset_bits));
            if (r.scale.storage == scale_storage::two_level)
                wanted += static_cast<double>(p.count * l.supers * (r.offset() == nibble::offset_kind::minimum ? 32 : 16));
            if (r.scale.storage == scale_storage::e4m3_f32 && p.count > 0) wanted += 32.0;
            if (r.scale.storage == scale_storage::double_quantized && p.count > 0) {
                const Index from = p.first * l.groups / 256, to = ((p.first + p.count) * l.groups - 1) / 256;
                wanted += 32.0 * static_cast<double>(to - from + 1) + 32.0;
                for (Index s = from; s <= to; ++s)
                    t.check(same_bits(b.nested_absmax(s - from), w.nested_absmax(s)), [&] { return std::string(r.name) + " absmax"; });
                t.check(b.layout().supers == to - from + 1, [&] { return std::string(r.name) + " supers"; });
            }
            const double weights = static_cast<double>(p.count * depth);
            t.check(b.bits_per_weight() == (p.count == 0 ? 0.0 : wanted / weights) &&
                        b.bytes() == static_cast<std::size_t>((wanted + 7.0) / 8.0) * (p.count == 0 ? 0 : 1),
                    [&] { return std::string(r.name) + " rows " + std::to_string(p.first) + " + " + std::to_string(p.count); });
        }
        t.check(w.row_block(16, 20).grouping() == nibble::granularity{std::min<Index>(w.grouping().rows, 20), w.group_size()},
                [&] { return std::string(r.name) + " grouping"; });
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() > nibble::recipes().size() * std::size(places));
}

TEST_CASE("a row block packs into the bytes of its rows", "[rows]") {
    const MatrixXf dense = data::matrix(70, 512, 3);
    std::size_t packed = 0;
    for (const nibble::recipe& r : nibble::recipes()) {
        const qmatrix w = nibble::quantize(dense, r.name);
        const std::optional<nibble::io::ggml::type> type = nibble::io::ggml::type_of(w);
        if (!type) continue;
        INFO(r.name);
        const qmatrix b = w.row_block(32, 21);
        REQUIRE(nibble::io::ggml::type_of(b) == type);
        const auto whole = nibble::io::ggml::pack(w).value();
        const auto part = nibble::io::ggml::pack(b).value();
        const auto row = nibble::io::ggml::row_bytes(*type, 512);
        CHECK(std::vector<std::uint8_t>(whole.begin() + 32 * row, whole.begin() + 53 * row) == part);
        ++packed;
    }
    CHECK(packed >= 15);
}

TEST_CASE("a row block outlives its matrix", "[rows]") {
    const MatrixXf dense = data::matrix(64, 96, 4);
    qmatrix w = nibble::quantize(dense, "q4_k");
    const MatrixXf wanted = nibble::dequantize(w).middleRows(16, 32);
    const qmatrix b = w.row_block(16, 32);
    w = qmatrix();
    CHECK(data::bits_differing(nibble::dequantize(b), wanted) == 0);
    // A product whose output lies in the shared memory is still refused.
    const MatrixXf x = data::matrix(96, 1, 5);
    auto* inside = const_cast<float*>(reinterpret_cast<const float*>(b.data()));
    const nibble::float_view y{inside, 32, 1, 1, 32};
    CHECK(nibble::check_gemm(b, nibble::column_major(x.data(), 96, 1), y).code() == errc::overlap);
}

TEST_CASE("row blocks that do not exist", "[rows]") {
    const qmatrix w = nibble::quantize(data::matrix(40, 64, 6), "int4_g32");
    mistake m = of([&] { static_cast<void>(w.row_block(20, 4)); });
    CHECK(m.code == errc::invalid_argument);
    CHECK(contains(m.message, "row 20"));
    CHECK(contains(m.message, "multiples of 16"));
    for (const place& p : {place{0, 41}, place{48, 0}, place{32, 9}, place{-16, 4}, place{16, -1}, place{16, PTRDIFF_MAX}}) {
        m = of([&] { static_cast<void>(w.row_block(p.first, p.count)); });
        CHECK(m.code == errc::out_of_range);
        CHECK(contains(m.message, std::to_string(p.count) + " rows from row " + std::to_string(p.first)));
        CHECK(contains(m.message, "40x64"));
    }
    CHECK(w.row_block(32, 8).rows() == 8);
    CHECK(w.row_block(32, 0).rows() == 0);
    CHECK(qmatrix().row_block(0, 0).rows() == 0);
}
