// concatenate: every number and every product is that of the parts, bit for bit, whether panels are copied or rows
// repacked; and what cannot be put together is named.
#include <nibble/nibble.hpp>

#include <array>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/inspect.hpp"
#include "support/mistake.hpp"
#include "support/reference_formats.hpp"

using Eigen::MatrixXf;
using nibble::compute;
using nibble::errc;
using nibble::granularity;
using nibble::offset_kind;
using nibble::qmatrix;
using nibble::scale_storage;
using reference::tally;
using Index = nibble::index;
namespace scales = nibble::scales;

namespace {

/// Whether the rows of `all` are those of the parts, in every accessor.
bool stacked(const std::vector<qmatrix>& parts, const qmatrix& all) {
    Index row = 0;
    for (const qmatrix& m : parts) {
        for (Index n = 0; n < m.rows(); ++n, ++row) {
            for (Index k = 0; k < m.cols(); ++k)
                if (m.code(n, k) != all.code(row, k) || nibble::detail::bits_of(m(n, k)) != nibble::detail::bits_of(all(row, k)))
                    return false;
            for (Index g = 0; g < m.groups(); ++g)
                if (m.stored_scale(n, g) != all.stored_scale(row, g) || m.stored_offset(n, g) != all.stored_offset(row, g) ||
                    nibble::detail::bits_of(m.scale(n, g)) != nibble::detail::bits_of(all.scale(row, g)) ||
                    nibble::detail::bits_of(m.offset(n, g)) != nibble::detail::bits_of(all.offset(row, g)))
                    return false;
        }
    }
    return row == all.rows();
}

/// Whether products with `all` are those with the parts, one below the other.
bool same_products(const std::vector<qmatrix>& parts, const qmatrix& all, const MatrixXf& x) {
    for (const compute c : {compute::strict_f32, compute::f32, compute::a16, compute::a8}) {
        MatrixXf wanted(all.rows(), x.cols()), y(all.rows(), x.cols());
        nibble::gemm(all, x, y, {.compute = c});
        Index row = 0;
        for (const qmatrix& m : parts) {
            nibble::gemm(m, x, wanted.middleRows(row, m.rows()), {.compute = c});
            row += m.rows();
        }
        if (data::bits_differing(y, wanted) != 0) return false;
    }
    return true;
}

}  // namespace

TEST_CASE("row blocks put together are the matrix, byte for byte", "[rows]") {
    const MatrixXf dense = data::matrix(300, 200, 1, data::distribution::student_t4);
    for (const nibble::recipe& r : nibble::recipes()) {
        INFO(r.name);
        const qmatrix w = nibble::quantize(dense, r.name);
        CHECK(inspect::same(w, nibble::concatenate({w})));
        const qmatrix all = nibble::concatenate({w.row_block(0, 48), w.row_block(48, 112), w.row_block(160, 0), w.row_block(160, 140)});
        CHECK(inspect::same(w, all));
        CHECK(all.name() == w.name());
        CHECK(all.data() != w.data());
        if (r.group.rows == 1) CHECK(all.bits_per_weight() == w.bits_per_weight());
    }
}

TEST_CASE("matrices of any number of rows, for every recipe", "[rows]") {
    const MatrixXf x = data::matrix(200, 3, 9);
    tally t;
    for (const nibble::recipe& r : nibble::recipes()) {
        // Odd counts, so that rows change their lanes; and multiples of 16, so that panels are copied.
        for (const auto& counts : {std::vector<Index>{20, 33, 1, 0, 150, 7}, std::vector<Index>{32, 160, 16, 45}}) {
            std::vector<qmatrix> parts;
            const bool of_tensor = r.scale.storage == scale_storage::e4m3_f32 || r.scale.storage == scale_storage::double_quantized;
            std::uint64_t stream = 10;
            for (const Index n : counts)
                if (!of_tensor) parts.push_back(nibble::quantize(data::matrix(n, 200, ++stream), r.name));
            if (of_tensor) {  // parts of one matrix share the numbers of the tensor
                const qmatrix w = nibble::quantize(data::matrix(300, 200, 10), r.name);
                parts = {w.row_block(0, 20), w.row_block(32, 7), w.row_block(48, 13)};
            }
            const qmatrix all = nibble::concatenate(parts);
            const std::string what = std::string(r.name) + ", the first of " + std::to_string(counts[0]) + " rows";
            t.check(stacked(parts, all), [&] { return what + ": accessors"; });
            t.check(same_products(parts, all, x), [&] { return what + ": products"; });
            t.check(data::bits_differing(nibble::dequantize(all).topRows(parts[0].rows()), nibble::dequantize(parts[0])) == 0,
                    [&] { return what + ": dequantize"; });
            // And taken apart again.
            t.check(stacked({all.row_block(16, all.rows() - 16)}, nibble::concatenate({all.row_block(16, all.rows() - 16)})), [&] { return what + ": a block"; });
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == nibble::recipes().size() * 8);
}

TEST_CASE("tiles of scales are as tall as fit", "[rows]") {
    const auto made = [](Index rows, granularity g) {
        return data::random_codes(rows, 64, nibble::int8::format, scales::f32, offset_kind::none, g, static_cast<std::uint64_t>(rows));
    };
    struct example {
        std::vector<qmatrix> parts;
        Index tile;
    };
    const std::vector<example> examples = {
        {{made(256, {128, 32}), made(384, {128, 32}), made(100, {128, 32})}, 128},
        {{made(576, {128, 32}), made(256, {128, 32})}, 64},           // 576 = 4.5 tiles
        {{made(32, {0, 32}), made(64, {0, 32})}, 32},                 // one scale each: 32, then 64
        {{made(48, {0, 32}), made(20, {0, 32}), made(4, {0, 32})}, 4},
        {{made(48, {0, 32}), made(20, {0, 32})}, 48},                 // the last one may be anything
        {{made(20, {1, 32}), made(16, {0, 32})}, 1},
        {{made(1, {1, 32}), made(1, {1, 32})}, 1},
        {{made(256, {128, 32}).row_block(48, 90), made(64, {128, 32})}, 10},  // tiles end at 80, 90
        {{made(7, {0, 32})}, 7},
    };
    std::size_t i = 0;
    for (const example& e : examples) {
        INFO("example " << i++);
        const qmatrix all = nibble::concatenate(e.parts);
        CHECK(all.grouping() == granularity{e.tile, 32});
        CHECK(stacked(e.parts, all));
    }
}

TEST_CASE("a codebook of the program's own lives as long as the matrix", "[rows]") {
    const std::array<float, 16> book = {-1.0f, -0.6f, -0.4f, -0.3f, -0.2f, -0.1f, -0.05f, 0.0f, 0.02f, 0.1f, 0.2f, 0.3f, 0.4f, 0.5f, 0.7f, 1.0f};
    std::vector<qmatrix> parts;
    {
        const nibble::format_handle mine = nibble::make_codebook("mine", book);
        for (int i = 0; i < 2; ++i) {
            nibble::qmatrix_builder b(20, 32, mine, scales::f32, offset_kind::none, {1, 32});
            for (Index n = 0; n < 20; ++n) {
                b.set_scale(n, 0, nibble::detail::bits_of(1.5f));
                for (Index k = 0; k < 32; ++k) b.set_code(n, k, static_cast<unsigned>(n + k + i) % 16);
            }
            parts.push_back(std::move(b).finish());
        }
    }
    const qmatrix all = nibble::concatenate(parts);
    parts.clear();
    CHECK(all(21, 3) == 1.5f * book[5]);
    CHECK(all.name() == "mine");
}

TEST_CASE("matrices that do not go together", "[rows]") {
    const auto made = [](const nibble::code_format& f, const nibble::scale_scheme& s, offset_kind o, Index group, Index cols = 64) {
        return data::random_codes(16, cols, f, s, o, {1, group}, 3);
    };
    const qmatrix a = made(nibble::int4::format, scales::f16, offset_kind::none, 32);
    struct example {
        qmatrix first, other;
        errc code;
        std::vector<std::string> parts;
    };
    const qmatrix k4 = made(nibble::int4::format, scales::two_level(6, false, 8), offset_kind::minimum, 32);
    const std::vector<example> examples = {
        {a, made(nibble::int4::format, scales::f16, offset_kind::none, 32, 96), errc::shape_mismatch, {"K", "16x64", "16x96"}},
        {a, made(nibble::int8::format, scales::f16, offset_kind::none, 32), errc::unsupported, {"code format", "int4 and int8"}},
        {a, made(nibble::int4::format, scales::f32, offset_kind::none, 32), errc::unsupported, {"scale scheme", "f16 and f32"}},
        {a, made(nibble::int4::format, scales::f16, offset_kind::minimum, 32), errc::unsupported, {"offset", "none and min"}},
        {a, made(nibble::int4::format, scales::f16, offset_kind::none, 16), errc::unsupported, {"group size", "32 and 16"}},
        {k4, made(nibble::int4::format, scales::two_level(6, false, 2), offset_kind::minimum, 32), errc::unsupported,
         {"scale scheme", "8 groups", "2 groups"}},
        {k4, made(nibble::int4::format, scales::two_level(4, false, 8), offset_kind::minimum, 32), errc::unsupported,
         {"scale scheme", "6 bits", "4 bits"}},
    };
    for (const example& e : examples) {
        const std::vector<qmatrix> parts = {e.first, e.first, e.other, e.first};
        const mistake m = of([&] { static_cast<void>(nibble::concatenate(parts)); });
        INFO(m.message);
        CHECK(m.code == e.code);
        CHECK(contains(m.message, "matrices 0 and 2"));
        for (const std::string& part : e.parts) CHECK(contains(m.message, part));
        CHECK(nibble::check_concatenate(parts).message() == m.message);
    }
    CHECK(of([] { static_cast<void>(nibble::concatenate({})); }).code == errc::invalid_argument);
    CHECK(nibble::check_concatenate(std::vector<qmatrix>{a, a}).code() == errc::ok);
    CHECK(nibble::concatenate({qmatrix(), qmatrix()}).rows() == 0);
}

TEST_CASE("numbers of the whole tensor must agree", "[rows]") {
    const qmatrix a = nibble::quantize(data::matrix(16, 64, 1), "nvfp4");
    const qmatrix b = nibble::quantize(data::matrix(16, 64, 2) * 3.0f, "nvfp4");
    mistake m = of([&] { static_cast<void>(nibble::concatenate({a, b})); });
    CHECK(m.code == errc::unsupported);
    CHECK(contains(m.message, "matrices 0 and 1"));
    CHECK(contains(m.message, "e4m3_f32"));
    // Double quantization: 64 columns are one group, so 256 rows share a second-level scale.
    const qmatrix d = nibble::quantize(data::matrix(600, 64, 3), "nf4_double");
    const qmatrix other = nibble::quantize(data::matrix(600, 64, 4), "nf4_double");
    CHECK(of([&] { static_cast<void>(nibble::concatenate({d, other})); }).code == errc::unsupported);
    m = of([&] { static_cast<void>(nibble::concatenate({d.row_block(0, 256), d.row_block(256, 16), d.row_block(512, 16)})); });
    CHECK(m.code == errc::unsupported);
    CHECK(contains(m.message, "matrices 1 and 2"));
    CHECK(contains(m.message, "256 groups"));
    const std::vector<qmatrix> moved = {d.row_block(256, 256), d.row_block(0, 256), d.row_block(512, 5)};
    CHECK(stacked(moved, nibble::concatenate(moved)));
}

TEST_CASE("matrices without columns or rows", "[rows]") {
    for (const nibble::recipe& r : nibble::recipes()) {
        INFO(r.name);
        const qmatrix a = nibble::quantize(MatrixXf(20, 0), r.name);
        const qmatrix b = nibble::concatenate({a, a.row_block(16, 4), a.row_block(0, 0)});
        CHECK((b.rows() == 24 && b.cols() == 0 && b.bits_per_weight() == 0.0));
        const MatrixXf x = nibble::gather_rows(b, std::vector<int>{23, 0});
        CHECK((x.rows() == 0 && x.cols() == 2));
        const qmatrix none = nibble::quantize(MatrixXf(0, 64), r.name);
        const qmatrix c = nibble::concatenate({none, none});
        CHECK((c.rows() == 0 && c.cols() == 64));
        CHECK(nibble::gather_rows(c, std::vector<int>{}).rows() == 64);
    }
}
