// The bytes of a matrix against the drawings at the top of nibble/qmatrix.hpp, written out by hand: cells of every
// width, both planes of 3, 5 and 6 bits, padded groups and rows, and the lines of scales and offsets.
#include <nibble/detail/dispatch.hpp>
#include <nibble/qmatrix.hpp>
#include <nibble/recipe.hpp>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/for_each_isa.hpp"
#include "support/guarded_buffer.hpp"
#include "support/reference.hpp"

using nibble::offset_kind;
using nibble::qmatrix;
using nibble::qmatrix_builder;
using reference::tally;
using Index = nibble::index;
namespace scales = nibble::scales;

namespace {

/// Any format of that many bits.
const nibble::code_format& format_of(int bits) {
    switch (bits) {
        case 1: return nibble::binary::format;
        case 2: return nibble::int2::format;
        case 3: return nibble::int3::format;
        case 4: return nibble::int4::format;
        case 5: return nibble::int5::format;
        case 6: return nibble::int6::format;
        case 8: return nibble::int8::format;
        default: return nibble::fp16::format;
    }
}

unsigned code_of(Index n, Index k, int bits) {
    const auto x = static_cast<std::uint32_t>(n * 7919 + k * 104729 + 12345);
    return (x ^ (x >> 7) ^ (x >> 13)) & ((1u << bits) - 1);
}

/// A matrix of those codes, one group a row, row scales n + 1.
qmatrix make(Index rows, Index cols, int bits, Index group = 0) {
    qmatrix_builder b(rows, cols, format_of(bits), bits == 16 ? scales::none : scales::f32, offset_kind::none,
                      {1, group});
    for (Index n = 0; n < rows; ++n)
        for (Index k = 0; k < cols; ++k) b.set_code(n, k, code_of(n, k, bits));
    return std::move(b).finish();
}

}  // namespace

TEST_CASE("cells of 1, 2, 4, 8 and 16 bits, as drawn", "[qmatrix][layout]") {
    // 20 rows (two panels), 100 columns (a ragged last cell for every width).
    constexpr Index rows = 20, cols = 100;
    tally t;
    for (const int bits : {1, 2, 4, 8, 16}) {
        const qmatrix w = make(rows, cols, bits);
        const Index per_cell = 32 / bits;
        const Index cells = (cols + per_cell - 1) / per_cell;
        for (Index p = 0; p < 2; ++p) {
            std::vector<std::uint8_t> wanted(static_cast<std::size_t>(64 * cells), 0);
            for (Index r = 0; r < 16; ++r) {
                for (Index k = 0; k < cols; ++k) {
                    if (16 * p + r >= rows) continue;
                    const unsigned code = code_of(16 * p + r, k, bits);
                    const Index cell = k / per_cell;
                    const Index in_cell = k % per_cell;
                    if (bits == 16) {  // bytes 4r .. 4r + 3 = code[r][2b], code[r][2b + 1]
                        wanted[static_cast<std::size_t>(64 * cell + 4 * r + 2 * in_cell)] =
                            static_cast<std::uint8_t>(code & 255u);
                        wanted[static_cast<std::size_t>(64 * cell + 4 * r + 2 * in_cell + 1)] =
                            static_cast<std::uint8_t>(code >> 8);
                        continue;
                    }
                    // bits `bits * f ..` of byte 4r + j hold k = per_cell * cell + 4f + j
                    const Index j = in_cell % 4;
                    const Index f = in_cell / 4;
                    std::uint8_t& byte = wanted[static_cast<std::size_t>(64 * cell + 4 * r + j)];
                    byte = static_cast<std::uint8_t>(byte | code << (bits * f));
                }
            }
            t.check(w.layout().panel_bytes == 64 * cells,
                    [&] { return std::to_string(bits) + " bits: the size of a panel"; });
            for (std::size_t i = 0; i < wanted.size(); ++i)
                t.check(w.panel(p)[i] == wanted[i], [&] {
                    return std::to_string(bits) + " bits, panel " + std::to_string(p) + ", byte " + std::to_string(i);
                });
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 2 * (5 + 64 * (4 + 7 + 13 + 25 + 50)));
}

TEST_CASE("two planes of 3, 5 and 6 bits, as drawn", "[qmatrix][layout]") {
    // Per 32 k: cells of the low 2, 4, 4 bits, then cells of the high 1, 1, 2 bits. The last block is whole.
    constexpr Index rows = 17, cols = 77;
    tally t;
    for (const int bits : {3, 5, 6}) {
        const qmatrix w = make(rows, cols, bits);
        const int low_bits = bits == 3 ? 2 : 4;
        const int high_bits = bits - low_bits;
        const Index blocks = 3;
        for (Index p = 0; p < 2; ++p) {
            std::vector<std::uint8_t> wanted(static_cast<std::size_t>(64 * bits * blocks), 0);
            const auto put = [&](Index at, Index r, Index k, int width, unsigned code) {  // k within its block of 32
                const Index per_cell = 32 / width;
                std::uint8_t& byte = wanted[static_cast<std::size_t>(at + 64 * (k / per_cell) + 4 * r + k % 4)];
                byte = static_cast<std::uint8_t>(byte | code << (width * static_cast<int>(k % per_cell / 4)));
            };
            for (Index r = 0; r < 16 && 16 * p + r < rows; ++r)
                for (Index k = 0; k < cols; ++k) {
                    const unsigned code = code_of(16 * p + r, k, bits);
                    const Index block = 64 * bits * (k / 32);
                    put(block, r, k % 32, low_bits, code & ((1u << low_bits) - 1));
                    put(block + 64 * low_bits, r, k % 32, high_bits, code >> low_bits);
                }
            t.check(w.layout().panel_bytes == 64 * bits * blocks,
                    [&] { return std::to_string(bits) + " bits: the size of a panel"; });
            for (std::size_t i = 0; i < wanted.size(); ++i)
                t.check(w.panel(p)[i] == wanted[i], [&] {
                    return std::to_string(bits) + " bits, panel " + std::to_string(p) + ", byte " + std::to_string(i);
                });
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 2 * (3 + 64 * 3 * (3 + 5 + 6)));
}

TEST_CASE("a few cells, byte by byte", "[qmatrix][layout]") {
    // Row 0 holds 0, 1, 2, ..., row 1 the same plus one: what a cell's first eight bytes are, without any formula.
    const auto counting = [](int bits) {
        qmatrix_builder b(2, 32, format_of(bits), bits == 16 ? scales::none : scales::f32, offset_kind::none, {1, 0});
        for (Index n = 0; n < 2; ++n)
            for (Index k = 0; k < 32; ++k) b.set_code(n, k, static_cast<unsigned>(k + n) & ((1u << bits) - 1));
        return std::move(b).finish();
    };
    const auto bytes = [](const qmatrix& w, Index from, std::size_t count = 8) {
        return std::vector<unsigned>(w.panel(0) + from, w.panel(0) + from + static_cast<Index>(count));
    };
    using list = std::vector<unsigned>;
    CHECK(bytes(counting(4), 0) == list{0x40, 0x51, 0x62, 0x73, 0x51, 0x62, 0x73, 0x84});
    CHECK(bytes(counting(4), 64) == list{0xc8, 0xd9, 0xea, 0xfb, 0xd9, 0xea, 0xfb, 0x0c});
    CHECK(bytes(counting(8), 0) == list{0, 1, 2, 3, 1, 2, 3, 4});
    CHECK(bytes(counting(8), 64 * 7) == list{28, 29, 30, 31, 29, 30, 31, 32});
    // 2 bits: byte j holds k = j, j + 4, j + 8, j + 12: the same low bits four times
    CHECK(bytes(counting(2), 0) == list{0x00, 0x55, 0xaa, 0xff, 0x55, 0xaa, 0xff, 0x00});
    CHECK(bytes(counting(1), 0) == list{0x00, 0xff, 0x00, 0xff, 0xff, 0x00, 0xff, 0x00});
    // 16 bits: two codes of one row, little-endian
    CHECK(bytes(counting(16), 0) == list{0, 0, 1, 0, 1, 0, 2, 0});
    CHECK(bytes(counting(16), 64) == list{2, 0, 3, 0, 3, 0, 4, 0});
    // 3 bits: two cells of low pairs (16 k each), then one cell of high bits: byte j, bit f is k = 4f + j
    CHECK(bytes(counting(3), 0) == list{0x00, 0x55, 0xaa, 0xff, 0x55, 0xaa, 0xff, 0x00});
    CHECK(bytes(counting(3), 128, 4) == list{0xaa, 0xaa, 0xaa, 0xaa});  // k & 4
    CHECK(bytes(counting(3), 132, 4) == list{0xaa, 0xaa, 0xaa, 0x55});
    // 5 bits: four nibble cells, one bit cell: k >= 16
    CHECK(bytes(counting(5), 0) == list{0x40, 0x51, 0x62, 0x73, 0x51, 0x62, 0x73, 0x84});
    CHECK(bytes(counting(5), 256, 4) == list{0xf0, 0xf0, 0xf0, 0xf0});
    CHECK(bytes(counting(5), 260, 4) == list{0xf0, 0xf0, 0xf0, 0x78});
    // 6 bits: four nibble cells, two cells of pairs: 0 for k < 16, 1 for k >= 16
    CHECK(bytes(counting(6), 0) == list{0x40, 0x51, 0x62, 0x73, 0x51, 0x62, 0x73, 0x84});
    CHECK(bytes(counting(6), 256) == list{0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x40});
    CHECK(bytes(counting(6), 320) == list{0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x95});
}

TEST_CASE("groups start at a multiple of 4, padding is zero bits", "[qmatrix][layout]") {
    for (const Index group : {1, 2, 3, 5, 6, 7, 31}) {
        CAPTURE(group);
        const Index cols = 3 * group + 1;
        qmatrix_builder b(3, cols, nibble::int8::format, scales::f32, offset_kind::none, {1, group});
        for (Index n = 0; n < 3; ++n)
            for (Index k = 0; k < cols; ++k) b.set_code(n, k, static_cast<unsigned>(100 + n * 50 + k));
        const qmatrix w = std::move(b).finish();
        const Index padded = (group + 3) / 4 * 4;
        std::vector<std::uint8_t> wanted(static_cast<std::size_t>(16 * (3 * padded + 4)), 0);
        for (Index n = 0; n < 3; ++n)
            for (Index k = 0; k < cols; ++k) {
                const Index at = k / group * padded + k % group;  // position along the row
                wanted[static_cast<std::size_t>(at / 4 * 64 + 4 * n + at % 4)] =
                    static_cast<std::uint8_t>(100 + n * 50 + k);
            }
        REQUIRE(w.layout().panel_bytes == static_cast<Index>(wanted.size()));
        CHECK(std::memcmp(w.panel(0), wanted.data(), wanted.size()) == 0);
    }
}

TEST_CASE("lines of scales and offsets, as drawn", "[qmatrix][layout]") {
    // [panel][group][line of 16]: 20 rows, groups of 8 of 24 columns.
    const auto value = [](Index n, Index g) { return static_cast<std::uint32_t>(17 * n + 5 * g + 3); };
    tally t;
    const auto filled = [&](const nibble::scale_scheme& s, offset_kind kind, const nibble::code_format& f) {
        qmatrix_builder b(20, 24, f, s, kind, {1, 8});
        const std::uint32_t mask = s.bits >= 32 ? 0xffffffffu : (1u << s.bits) - 1;
        const std::uint32_t offset_mask = kind == offset_kind::zero_point ? f.code_count() - 1 : mask;
        for (Index n = 0; n < 20; ++n)
            for (Index g = 0; g < 3; ++g) {
                b.set_scale(n, g, value(n, g) & mask);
                if (kind != offset_kind::none) b.set_offset(n, g, (value(n, g) + 40) & offset_mask);
            }
        return std::move(b).finish();
    };
    /// Byte i of the line of `bits`-bit integers, 16 lanes.
    const auto line_byte = [](int bits, Index i, const std::vector<std::uint32_t>& lanes) {
        if (bits >= 8) {  // little-endian numbers one after the other
            const int bytes = bits / 8;
            return lanes[static_cast<std::size_t>(i / bytes)] >> (8 * (i % bytes)) & 255u;
        }
        // Planes of 4, 2, 1 bits. A p-bit plane has 2p bytes; lane r is bits p * (r / 2p) .. of byte r % 2p.
        int done = 0;
        for (const int p : {4, 2, 1}) {
            if ((bits & p) == 0) continue;
            if (i < 2 * p) {
                std::uint32_t byte = 0;
                for (Index r = i; r < 16; r += 2 * p)
                    byte |= (lanes[static_cast<std::size_t>(r)] >> done & ((1u << p) - 1))
                            << (static_cast<Index>(p) * (r / (2 * p)));
                return byte;
            }
            i -= 2 * p;
            done += p;
        }
        return std::uint32_t{0};
    };
    struct kind {
        nibble::scale_scheme scheme;
        offset_kind offset;
        const nibble::code_format* format;
    };
    const std::vector<kind> kinds = {{scales::f32, offset_kind::none, &nibble::int4::format},
                                     {scales::f16, offset_kind::zero_point, &nibble::int4::format},
                                     {scales::bf16, offset_kind::zero_point, &nibble::int3::format},
                                     {scales::f32, offset_kind::zero_point, &nibble::int8::format},
                                     {scales::f16, offset_kind::zero_point, &nibble::int5::format},
                                     {scales::f16, offset_kind::zero_point, &nibble::int6::format},
                                     {scales::f16, offset_kind::zero_point, &nibble::int2::format},
                                     {scales::f16, offset_kind::minimum, &nibble::int4::format},
                                     {scales::e8m0, offset_kind::none, &nibble::fp4_e2m1::format},
                                     {scales::two_level(6, false, 2), offset_kind::minimum, &nibble::int4::format},
                                     {scales::two_level(4, false, 2), offset_kind::minimum, &nibble::int2::format},
                                     {scales::two_level(3, true, 2), offset_kind::none, &nibble::int4::format},
                                     {scales::two_level(7, true, 2), offset_kind::none, &nibble::int4::format}};
    for (const kind& k : kinds) {
        const qmatrix w = filled(k.scheme, k.offset, *k.format);
        const auto& l = w.layout();
        const int offset_bits = k.offset == offset_kind::none         ? 0
                                : k.offset == offset_kind::zero_point ? k.format->bits
                                                                      : k.scheme.bits;
        const Index scale_line = 2 * k.scheme.bits;  // 16 lanes
        const Index offset_line = 2 * offset_bits;
        t.check(l.scales_at == 2 * l.panel_bytes, [&] { return std::string("where scales begin"); });
        t.check(l.offsets_at == (l.scales_at + 2 * 3 * scale_line + 63) / 64 * 64,
                [&] { return std::string("where offsets begin"); });
        for (Index p = 0; p < 2; ++p)
            for (Index g = 0; g < 3; ++g) {
                std::vector<std::uint32_t> lanes(16, 0), offsets(16, 0);
                for (Index r = 0; r < 16 && 16 * p + r < 20; ++r) {
                    lanes[static_cast<std::size_t>(r)] = w.stored_scale(16 * p + r, g);
                    offsets[static_cast<std::size_t>(r)] = w.stored_offset(16 * p + r, g);
                    const std::uint32_t mask = k.scheme.bits >= 32 ? 0xffffffffu : (1u << k.scheme.bits) - 1;
                    t.check(lanes[static_cast<std::size_t>(r)] == (value(16 * p + r, g) & mask),
                            [&] { return std::string("a stored scale"); });
                    if (offset_bits != 0)
                        t.check(offsets[static_cast<std::size_t>(r)] ==
                                    ((value(16 * p + r, g) + 40) & ((1u << offset_bits) - 1)),
                                [&] { return std::string("a stored offset"); });
                }
                for (Index i = 0; i < scale_line; ++i)
                    t.check(w.data()[l.scales_at + (3 * p + g) * scale_line + i] == line_byte(k.scheme.bits, i, lanes),
                            [&] {
                                return "byte " + std::to_string(i) + " of a line of " + std::to_string(k.scheme.bits) +
                                       "-bit scales";
                            });
                for (Index i = 0; i < offset_line; ++i)
                    t.check(
                        w.data()[l.offsets_at + (3 * p + g) * offset_line + i] == line_byte(offset_bits, i, offsets),
                        [&] {
                            return "byte " + std::to_string(i) + " of a line of " + std::to_string(offset_bits) +
                                   "-bit offsets";
                        });
            }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() > kinds.size() * (2 + 6 * 16));
}

TEST_CASE("second levels of scales, as drawn", "[qmatrix][layout]") {
    // supers [panel][super-group][16] fp16 d, then dmin
    qmatrix_builder b(20, 40, nibble::int4::format, scales::two_level(6, false, 2), offset_kind::minimum,
                      {1, 8});  // 5 groups, 3 supers
    for (Index n = 0; n < 20; ++n)
        for (Index s = 0; s < 3; ++s) {
            b.set_super(n, s, static_cast<std::uint16_t>(1000 + 10 * n + s));
            b.set_super(n, s, static_cast<std::uint16_t>(5000 + 10 * n + s), true);
        }
    const qmatrix w = std::move(b).finish();
    const auto& l = w.layout();
    REQUIRE(l.supers == 3);
    CHECK(l.supers_at % 64 == 0);
    for (Index n = 0; n < 20; ++n)
        for (Index s = 0; s < 3; ++s) {
            const std::uint8_t* line = w.data() + l.supers_at + (n / 16 * 3 + s) * 64;
            std::uint16_t d = 0, dmin = 0;
            std::memcpy(&d, line + 2 * (n % 16), 2);
            std::memcpy(&dmin, line + 32 + 2 * (n % 16), 2);
            CHECK(d == 1000 + 10 * n + s);
            CHECK(dmin == 5000 + 10 * n + s);
            CHECK(w.stored_super(n, s) == d);
            CHECK(w.stored_super(n, s, true) == dmin);
        }
    // [groups / 256] float, groups counted row by row through the tensor
    qmatrix_builder n(20, 160, nibble::nf4::format, scales::double_quantized, offset_kind::none, {1, 8});  // 400 groups
    n.set_nested_absmax(0, 1.5f);
    n.set_nested_absmax(1, 2.5f);
    n.set_tensor_scale(0.25f);
    for (Index r = 0; r < 20; ++r)
        for (Index g = 0; g < 20; ++g) n.set_scale(r, g, 255);  // the map's last entry is 1
    const qmatrix q = std::move(n).finish();
    CHECK(q.nested_absmax(0) == 1.5f);
    CHECK(q.nested_absmax(1) == 2.5f);
    float stored[2];
    std::memcpy(stored, q.data() + q.layout().supers_at, 8);
    CHECK(stored[0] == 1.5f);
    CHECK(stored[1] == 2.5f);
    CHECK(q.scale(0, 0) == 1.75f);
    CHECK(q.scale(12, 15) == 1.75f);  // group 255
    CHECK(q.scale(12, 16) == 2.75f);  // group 256
    CHECK(q.tensor_scale() == 0.25f);
}

TEST_CASE("one scale for a panel is stored once", "[qmatrix][layout]") {
    for (const auto& [group_rows, rows, lanes] : {std::tuple<Index, Index, int>(0, 40, 1),
                                                  {16, 40, 1},
                                                  {128, 300, 1},
                                                  {2, 40, 16},
                                                  {40, 40, 1},
                                                  {24, 40, 16},
                                                  {1, 1, 1},
                                                  {1, 40, 16}}) {
        CAPTURE(group_rows, rows);
        qmatrix_builder b(rows, 64, nibble::int8::format, scales::f32, offset_kind::none, {group_rows, 32});
        CHECK(b.layout().lanes == lanes);
        CHECK(b.layout().scale_line == 4 * lanes);
        const Index tall = group_rows == 0 ? rows : group_rows;
        for (Index n = 0; n < rows; ++n)
            for (Index g = 0; g < 2; ++g)
                b.set_scale(n, g, reference::bits_from_float(static_cast<float>(1 + n / tall * 2 + g)));
        const qmatrix w = std::move(b).finish();
        for (Index n = 0; n < rows; ++n)
            for (Index g = 0; g < 2; ++g) {
                if (w.scale(n, g) != static_cast<float>(1 + n / tall * 2 + g)) {
                    CAPTURE(n, g, w.scale(n, g));
                    CHECK(false);
                }
            }
    }
}

TEST_CASE("every level reads every width", "[qmatrix][layout]") {
    // Lines of 16 x 4 bytes: a raw code or a table's entry. From every k-quad on, as groups start there.
    tally t;
    for (const int bits : {1, 2, 3, 4, 5, 6, 8})
        for (const Index cols : {1, 4, 5, 31, 32, 33, 64, 100, 256}) {
            const qmatrix w = make(18, cols, bits);
            const Index positions = (cols + 3) / 4 * 4;
            for_each_isa([&](nibble::isa level) {
                const nibble::detail::kernel_table& kernels = nibble::detail::kernels_of(level);
                std::uint8_t bytes_table[16];
                for (int u = 0; u < 16; ++u) bytes_table[u] = static_cast<std::uint8_t>(250 - 7 * u);
                Index wrong = 0;
                for (Index first = 0; first < positions / 4; first += 1 + positions / 20) {
                    const Index quads = positions / 4 - first;
                    guarded_buffer<std::uint8_t> bytes(static_cast<std::size_t>(64 * quads));
                    for (const bool mapped : {false, true}) {
                        const bool small = bits <= 4 && mapped;
                        kernels.unpack(w.panel(1), bits, first, quads, small ? bytes_table : nullptr, bytes.data());
                        for (Index k = 4 * first; k < positions; ++k)
                            for (Index r = 0; r < 16; ++r) {
                                const unsigned code = k < cols && r < 2 ? code_of(16 + r, k, bits) : 0;
                                const Index at = k - 4 * first;
                                wrong += bytes[static_cast<std::size_t>(at / 4 * 64 + 4 * r + at % 4)] !=
                                                 (small ? bytes_table[code] : code)
                                             ? 1
                                             : 0;
                            }
                    }
                }
                t.check(wrong == 0, [&] {
                    return std::to_string(bits) + " bits, " + std::to_string(cols) + " columns at " +
                           nibble::name_of(level);
                });
            });
        }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 7 * 9 * supported_isas().size());
}

TEST_CASE("set_row writes what set_code writes", "[qmatrix][layout]") {
    for (const int bits : {1, 2, 3, 4, 5, 6, 8})
        for (const Index group : {0, 3, 5, 32, 100}) {
            CAPTURE(bits, group);
            const qmatrix wanted = make(19, 131, bits, group);
            qmatrix_builder b(19, 131, format_of(bits), scales::f32, offset_kind::none, {1, group});
            for (Index n = 0; n < 19; ++n) {
                std::vector<std::uint8_t> codes;
                for (Index k = 0; k < 131; ++k) codes.push_back(static_cast<std::uint8_t>(code_of(n, k, bits)));
                b.set_row(n, codes.data());
            }
            const qmatrix w = std::move(b).finish();
            REQUIRE(w.memory_bytes() == wanted.memory_bytes());
            CHECK(std::memcmp(w.data(), wanted.data(), w.memory_bytes()) == 0);
            Index wrong = 0;
            for (Index n = 0; n < 19; ++n)
                for (Index k = 0; k < 131; ++k) wrong += w.code(n, k) != code_of(n, k, bits) ? 1 : 0;
            CHECK(wrong == 0);
        }
}

TEST_CASE("lines of 16 lanes are read and written as one by one", "[qmatrix][layout]") {
    for (int bits = 1; bits <= 8; ++bits) {
        std::uint8_t values[16], line[16] = {}, one_by_one[16] = {}, back[16];
        for (int lane = 0; lane < 16; ++lane) values[lane] = static_cast<std::uint8_t>((lane * 53 + 29) & ((1 << bits) - 1));
        nibble::detail::set_line(line, bits, values);
        for (int lane = 0; lane < 16; ++lane) nibble::detail::set_lane(one_by_one, bits, lane, values[lane]);
        CHECK(std::memcmp(line, one_by_one, sizeof line) == 0);
        nibble::detail::get_line(line, bits, back);
        CHECK(std::memcmp(back, values, sizeof back) == 0);
    }
}
