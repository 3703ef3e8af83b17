// int32 sums are exact: every format of integers, every level, ragged shapes, zero points and codes at their ends, any
// memory layout, any executor.
#include <nibble/nibble.hpp>

#include <limits>
#include <vector>

#include "support/catch.hpp"
#include "support/for_each_isa.hpp"
#include "support/guarded_buffer.hpp"
#include "support/integer_reference.hpp"
#include "support/reference_formats.hpp"

namespace ref = integer_reference;
using Index = nibble::index;
using nibble::offset_kind;
using nibble::qmatrix;
using nibble::quantized_activations;
using reference::tally;

namespace {

void compare(const std::string& what, const qmatrix& w, const quantized_activations& a, tally& t) {
    const ref::int64_matrix wanted = ref::sums(w, a);
    nibble::workspace scratch;
    ref::backwards threads;
    for_each_isa([&](nibble::isa level) {
        const auto name = [&] {
            return what + " at " + nibble::name_of(level) + ", " + std::to_string(w.rows()) + "x" + std::to_string(w.cols()) + " x " + std::to_string(a.cols());
        };
        ref::MatrixXi y = ref::MatrixXi::Constant(w.rows(), a.cols(), 77);
        nibble::integer_gemm(w, a, y);
        t.check(y.cast<std::int64_t>() == wanted, name);
        ref::MatrixXi z = ref::MatrixXi::Constant(w.rows(), a.cols(), 78);
        nibble::integer_gemm(w, a, z, {.workspace = &scratch, .executor = &threads});
        t.check(z == y, [&] { return name() + " in tasks"; });
    });
}

/// Weights of one scale a row or in all, random codes.
qmatrix weights(const nibble::code_format& f, offset_kind offset, Index n, Index k, std::uint64_t stream, Index rows_per_scale = 1) {
    return data::random_codes(n, k, f, nibble::scales::f32, offset, {rows_per_scale, 0}, stream);
}

constexpr int ends[] = {0, 127, 128, 255};

}  // namespace

TEST_CASE("sums are exact for every format of integers", "[integer_gemm]") {
    tally t;
    std::uint64_t stream = 1;
    int formats = 0;
    for (const nibble::code_format* f : nibble::formats()) {
        if (!f->integral()) continue;
        ++formats;
        for (const offset_kind offset : {offset_kind::none, offset_kind::zero_point}) {
            const bool plain = f == &nibble::binary::format || f == &nibble::ternary::format || f->decode != nibble::decode_class::integer;
            if (plain && offset != offset_kind::none) continue;
            for (const Index tall : {1, 0}) {
                const qmatrix w = weights(*f, offset, 35, 300, ++stream, tall);
                const ref::uint8_matrix u = ref::codes<std::uint8_t>(300, 7, ++stream);
                const ref::int8_matrix i = ref::codes<std::int8_t>(300, 7, ++stream);
                const std::string name = std::string(f->name) + " " + nibble::name_of(offset);
                for (const int z : ends) {
                    compare(name + " u8 " + std::to_string(z), w, nibble::wrap_activations(u, 0.1f, z), t);
                    compare(name + " i8 " + std::to_string(z - 128), w, nibble::wrap_activations(i, 0.1f, z - 128), t);
                }
                compare(name + " i8 0", w, nibble::wrap_activations(i, 0.1f), t);
            }
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(formats == 10);
}

TEST_CASE("sums are exact for ragged shapes and every number of columns", "[integer_gemm]") {
    tally t;
    std::uint64_t stream = 1000;
    for (const Index k : {0, 1, 2, 3, 4, 5, 7, 8, 9, 31, 33, 63, 65, 255, 256, 257, 515})
        for (const Index n : {0, 1, 15, 16, 17, 33}) {
            const std::vector<float> scales(3, 1.0f);
            const std::vector<int> zeros = {-128, 0, 127};
            const ref::int8_matrix a = ref::codes<std::int8_t>(k, 3, ++stream);
            for (const nibble::code_format* f : {&nibble::int8::format, &nibble::int4::format, &nibble::int3::format, &nibble::fp4_e2m1::format})
                compare(f->name, weights(*f, offset_kind::none, n, k, ++stream), nibble::wrap_activations(a, scales, zeros), t);
        }
    for (const nibble::code_format* f : {&nibble::int8::format, &nibble::int4::format, &nibble::int5::format})
        for (Index m = 0; m <= 18; ++m) {
            const ref::uint8_matrix a = ref::codes<std::uint8_t>(192, m, ++stream);
            compare(f->name, weights(*f, offset_kind::zero_point, 17, 192, ++stream), nibble::wrap_activations(a, 1.0f, static_cast<int>(m) * 13), t);
        }
    INFO(t.report());
    CHECK(t.failures() == 0);
}

TEST_CASE("sums are exact where int32 is full", "[integer_gemm]") {
    // 255 * 255 * 33025 and 128 * 128 * 131071 are the last that fit; one more is refused (errors_test.cpp).
    tally t;
    for (const int code : {0, 255})
        for (const int zero : {0, 255})
            for (const int x : {0, 255})
                for (const int z : {0, 255}) {
                    nibble::qmatrix_builder b(17, 33025, nibble::int8::format, nibble::scales::f32, offset_kind::zero_point, {1, 0});
                    const std::vector<std::uint8_t> row(33025, static_cast<std::uint8_t>(code));
                    for (Index n = 0; n < 17; ++n) {
                        b.set_scale(n, 0, nibble::detail::bits_of(1.0f));
                        b.set_offset(n, 0, static_cast<std::uint32_t>(zero));
                        b.set_row(n, row.data());
                    }
                    const qmatrix w = std::move(b).finish();
                    const ref::uint8_matrix a = ref::uint8_matrix::Constant(33025, 1, static_cast<std::uint8_t>(x));
                    const int wanted = (code - zero) * (x - z) * 33025;
                    for_each_isa([&](nibble::isa level) {
                        ref::MatrixXi y(17, 1);
                        nibble::integer_gemm(w, nibble::wrap_activations(a, 1.0f, z), y);
                        t.check((y.array() == wanted).all(), [&] { return std::to_string(y(0)) + ", not " + std::to_string(wanted) + " at " + nibble::name_of(level); });
                    });
                }
    for (const int x : {-128, 127}) {
        nibble::qmatrix_builder b(1, 131071, nibble::int8::format, nibble::scales::f32, offset_kind::none, {1, 0});
        b.set_scale(0, 0, nibble::detail::bits_of(1.0f));
        b.set_row(0, std::vector<std::uint8_t>(131071, 0).data());
        const qmatrix w = std::move(b).finish();
        const ref::int8_matrix a = ref::int8_matrix::Constant(131071, 1, static_cast<std::int8_t>(x));
        for_each_isa([&](nibble::isa) {
            ref::MatrixXi y(1, 1);
            nibble::integer_gemm(w, nibble::wrap_activations(a, 1.0f), y);
            t.check(y(0) == -128 * x * 131071, [&] { return std::to_string(y(0)); });
        });
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
}

TEST_CASE("codes and sums may lie anywhere", "[integer_gemm]") {
    const Index n = 35, k = 70, m = 5;
    const qmatrix w = weights(nibble::int4::format, offset_kind::zero_point, n, k, 5);
    const ref::uint8_matrix dense = ref::codes<std::uint8_t>(k, m, 6);
    const ref::int64_matrix wanted = ref::sums(w, nibble::wrap_activations(dense, 1.0f, 31));
    struct layout {
        Index row, col;
    };
    tally t;
    for_each_isa([&](nibble::isa level) {
        for (const side where : {side::left, side::right})
            for (const layout in : {layout{1, k}, layout{m, 1}, layout{2, 2 * k}, layout{1, -k}, layout{-m, 1}})
                for (const layout out : {layout{1, n}, layout{m, 1}, layout{3, 3 * n}, layout{-1, n}, layout{1, -n}}) {
                    const auto length = [](Index rows, Index cols, layout l) {
                        return static_cast<std::size_t>((rows - 1) * std::abs(l.row) + (cols - 1) * std::abs(l.col) + 1);
                    };
                    const auto origin = [](Index rows, Index cols, layout l) {
                        return (l.row < 0 ? (1 - rows) * l.row : 0) + (l.col < 0 ? (1 - cols) * l.col : 0);
                    };
                    guarded_buffer<std::uint8_t> codes(length(k, m, in), where);
                    guarded_buffer<std::int32_t> sums(length(n, m, out), where);
                    const nibble::integer_view<std::uint8_t> from{codes.data() + origin(k, m, in), k, m, in.row, in.col};
                    const nibble::integer_view<std::int32_t> to{sums.data() + origin(n, m, out), n, m, out.row, out.col};
                    for (Index j = 0; j < m; ++j)
                        for (Index i = 0; i < k; ++i) *from.at(i, j) = dense(i, j);
                    nibble::integer_gemm(w, nibble::wrap_activations(from, 1.0f, 31), to);
                    bool same = true;
                    for (Index j = 0; j < m; ++j)
                        for (Index i = 0; i < n; ++i) same = same && *to.at(i, j) == wanted(i, j);
                    t.check(same, [&] {
                        return "strides " + std::to_string(in.row) + " " + std::to_string(in.col) + " to " + std::to_string(out.row) + " " + std::to_string(out.col) +
                               " at " + nibble::name_of(level);
                    });
                }
    });
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() >= 50);
}

TEST_CASE("blocks of rows and of Eigen matrices", "[integer_gemm]") {
    const qmatrix w = weights(nibble::int8::format, offset_kind::none, 70, 64, 8);
    const ref::int8_matrix a = ref::codes<std::int8_t>(64, 6, 9);
    const quantized_activations whole = nibble::wrap_activations(a, 1.0f, 5);
    const ref::int64_matrix wanted = ref::sums(w, whole);
    Eigen::MatrixXi big = Eigen::MatrixXi::Constant(40, 9, -5);
    nibble::integer_gemm(w.row_block(32, 38), whole, big.block(1, 2, 38, 6));
    CHECK(big.block(1, 2, 38, 6).cast<std::int64_t>() == wanted.bottomRows(38));
    CHECK((big.leftCols(2).array() == -5).all());
    CHECK((big.row(0).array() == -5).all());
    CHECK((big.row(39).array() == -5).all());
    Eigen::Matrix<int, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> rows(70, 2);
    nibble::integer_gemm(w, nibble::wrap_activations(a.middleCols(3, 2), 1.0f, 5), rows);
    CHECK(rows.cast<std::int64_t>() == wanted.middleCols(3, 2));
}
