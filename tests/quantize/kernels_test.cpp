// The kernels of quantize() and dequantize() against the scalar definitions of what they compute, bit for bit, at every
// level, on memory between guard pages.
#include <nibble/dequantize.hpp>
#include <nibble/quantize.hpp>

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/for_each_isa.hpp"
#include "support/guarded_buffer.hpp"

using nibble::code_format;
using Index = nibble::index;
using nibble::offset_kind;
using nibble::detail::bits_of;
using nibble::detail::float_of;

namespace {

constexpr offset_kind kinds[] = {offset_kind::none, offset_kind::zero_point, offset_kind::float_zero, offset_kind::minimum};

bool has_offset(const code_format& f) {
    return f.decode == nibble::decode_class::integer && &f != &nibble::binary::format && &f != &nibble::ternary::format;
}

/// Every sign, exponent and 7 bits of mantissa, with the low halves that decide a rounding.
std::vector<float> finite_floats() {
    std::vector<float> x;
    for (std::uint32_t high = 0; high < 0x10000u; ++high)
        for (const std::uint32_t low : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu})
            if (nibble::detail::is_finite_bits(high << 16)) x.push_back(float_of(high << 16 | low));
    return x;
}

/// The numbers between which codes change: all halves of integers to 300, sums of neighbours of every table, and their
/// neighbours.
std::vector<float> ties(const code_format& f) {
    std::vector<float> x;
    for (int i = -600; i <= 600; ++i) x.push_back(static_cast<float>(i) * 0.5f);
    for (std::uint32_t u = 0; f.bits <= 8 && u < f.code_count(); ++u)
        for (std::uint32_t v = 0; v < f.code_count(); ++v) {
            const float middle = 0.5f * (f.values[u] + f.values[v]);
            if (!nibble::detail::is_finite_bits(bits_of(middle))) continue;
            x.push_back(middle);
            if (f.bits <= 6 && middle != 0.0f)
                for (const int step : {-1, 1}) x.push_back(float_of(bits_of(middle) + static_cast<std::uint32_t>(step)));
        }
    return x;
}

std::vector<float> concatenated(std::vector<float> a, const std::vector<float>& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
}

/// Small, reproducible, with zeros of both signs, subnormal and huge numbers.
float number(Index i) {
    const auto u = static_cast<std::uint32_t>(i) * 2654435761u + 12345u;
    switch (u >> 28) {
        case 0: return 0.0f;
        case 1: return -0.0f;
        case 2: return float_of(u & 0x807fffffu);
        case 3: return float_of((u & 0x80ffffffu) | 0x7e000000u);
        default: return static_cast<float>(static_cast<std::int32_t>(u) >> 8) * 0x1p-20f;
    }
}

bool same(float a, float b) { return bits_of(a) == bits_of(b); }

const nibble::detail::codec_kernels& codec() { return nibble::detail::active_kernels().codec; }

}  // namespace

TEST_CASE("scan finds what comparing in order finds", "[quantize][kernels]") {
    for_each_isa([](nibble::isa) {
        for (const int sign : {0, 1, -1})  // of all weights, or their own
            for (const Index cols : {1, 2, 15, 16, 17, 31, 33, 64, 100, 257})
                for (const Index group : {1, 3, 4, 16, 31, 64, 257}) {
                    const Index groups = (cols + group - 1) / group;
                    for (const side where : {side::left, side::right}) {
                        guarded_buffer<float> x(static_cast<std::size_t>(cols), where);
                        guarded_buffer<float> low(static_cast<std::size_t>(groups), where), high(low.size(), where);
                        guarded_buffer<float> below(low.size(), where), above(low.size(), where);
                        for (Index k = 0; k < cols; ++k) {
                            const float v = number(k + cols * group);
                            x[static_cast<std::size_t>(k)] = static_cast<float>(sign) * v < 0.0f ? -v : v;
                        }
                        const std::uint32_t most = codec().scan(x.data(), cols, group, low.data(), high.data(), x.data());
                        REQUIRE(codec().scan_magnitudes(x.data(), cols, group, below.data(), above.data(), x.data()) == most);
                        std::uint32_t largest = 0;
                        for (Index g = 0; g < groups; ++g) {
                            const auto at = static_cast<std::size_t>(g);
                            float lo = x[static_cast<std::size_t>(g * group)];
                            float hi = lo;
                            std::uint32_t amax = 0;
                            for (Index k = g * group; k < cols && k < (g + 1) * group; ++k) {
                                const float v = x[static_cast<std::size_t>(k)];
                                lo = v < lo ? v : lo;
                                hi = v > hi ? v : hi;
                                amax = (std::max)(amax, bits_of(v) & 0x7fffffffu);
                            }
                            largest = (std::max)(largest, amax);
                            REQUIRE(same(low[at], lo));
                            REQUIRE(same(high[at], hi));
                            REQUIRE(bits_of(above[at]) == amax);
                            REQUIRE(same(below[at], -above[at]));
                        }
                        REQUIRE(most == largest);
                        for (const std::uint32_t bad : {0x7f800000u, 0xff800000u, 0x7f800001u, 0xffffffffu})
                            for (Index k = 0; k < cols; k += 7) {
                                float& v = x[static_cast<std::size_t>(k)];
                                const float was = v;
                                std::memcpy(&v, &bad, 4);
                                REQUIRE(codec().scan(x.data(), cols, group, low.data(), high.data(), x.data()) >= 0x7f800000u);
                                REQUIRE(codec().scan_magnitudes(x.data(), cols, group, low.data(), high.data(), x.data()) >= 0x7f800000u);
                                v = was;
                            }
                    }
                }
    });
}

TEST_CASE("the kernels give the codes of encode_weight", "[quantize][kernels]") {
    const std::vector<float> all = finite_floats();
    for_each_isa([&](nibble::isa) {
        int encoders = 0;
        for (const code_format* f : nibble::formats()) {
            if (f->bits > 8) continue;
            INFO(f->name);
            const std::vector<float> x = concatenated(all, ties(*f));
            const auto cols = static_cast<Index>(x.size());
            for (const offset_kind kind : kinds) {
                if (kind != offset_kind::none && !has_offset(*f)) continue;
                nibble::detail::encoder e;
                REQUIRE(nibble::detail::make_encoder(*f, kind, e));
                ++encoders;
                for (const float inverse : {1.0f, 0.0f, 0.37f, 3.0e38f, 1.0e-39f})
                    for (const float offset : kind == offset_kind::zero_point ? std::vector<float>{0.0f, 1.0f, static_cast<float>(f->code_count() - 1)}
                                                                              : std::vector<float>{0.0f, -1.75f, 2.5f}) {
                        guarded_buffer<std::uint8_t> codes(x.size());
                        codec().encode(e, {x.data(), cols, cols, cols, &inverse, &offset, codes.data(), x.data()});
                        Index wrong = 0;
                        for (std::size_t i = 0; i < x.size(); ++i)
                            wrong += codes[i] != nibble::detail::encode_weight(*f, kind, x[i], inverse, offset) ? 1 : 0;
                        INFO("offset " << name_of(kind) << " " << offset << ", inverse " << inverse);
                        REQUIRE(wrong == 0);
                    }
            }
        }
        REQUIRE(encoders == 19 + 3 * 6);
    });
}

TEST_CASE("groups are encoded with numbers of their own, and padding is not touched", "[quantize][kernels]") {
    for_each_isa([](nibble::isa) {
        for (const code_format* f : {&nibble::int4::format, &nibble::nf4::format, &nibble::fp4::format, &nibble::fp8_e4m3::format})
            for (const Index cols : {1, 15, 16, 17, 70, 129})
                for (const Index group : {1, 5, 16, 31, 48, 129})
                    for (const side where : {side::left, side::right}) {
                        const Index groups = (cols + group - 1) / group;
                        const Index padded = (group + 3) / 4 * 4;
                        guarded_buffer<float> x(static_cast<std::size_t>(cols), where);
                        guarded_buffer<float> inverse(static_cast<std::size_t>(groups), where), offset(inverse.size(), where);
                        guarded_buffer<std::uint8_t> codes(static_cast<std::size_t>((groups - 1) * padded + cols - (groups - 1) * group), where);
                        for (Index k = 0; k < cols; ++k) x[static_cast<std::size_t>(k)] = 0.01f * static_cast<float>((k * 37) % 101 - 50);
                        for (Index g = 0; g < groups; ++g) {
                            inverse[static_cast<std::size_t>(g)] = 1.0f + static_cast<float>(g);
                            offset[static_cast<std::size_t>(g)] = 0.0f;
                        }
                        std::memset(codes.data(), 0xee, codes.size());
                        nibble::detail::encoder e;
                        REQUIRE(nibble::detail::make_encoder(*f, offset_kind::none, e));
                        codec().encode(e, {x.data(), cols, group, padded, inverse.data(), offset.data(), codes.data(), x.data()});
                        for (std::size_t at = 0; at < codes.size(); ++at) {
                            const Index g = static_cast<Index>(at) / padded;
                            const Index k = static_cast<Index>(at) % padded;
                            const unsigned expected =
                                k >= group ? 0xeeu : f->encode(*f, x[static_cast<std::size_t>(g * group + k)] * inverse[static_cast<std::size_t>(g)]);
                            REQUIRE(codes[at] == expected);
                        }
                    }
    });
}

TEST_CASE("formats that the kernels do not know keep their own encode", "[quantize][kernels]") {
    nibble::detail::encoder e;
    code_format f = nibble::int4::format;
    f.encode = [](const code_format&, float) { return 3u; };
    CHECK_FALSE(nibble::detail::make_encoder(f, offset_kind::none, e));
    f = nibble::int4::format;
    f.max_value = 6.5f;  // clamped before it is rounded
    CHECK_FALSE(nibble::detail::make_encoder(f, offset_kind::none, e));
    f = nibble::nf4::format;
    f.encode = nibble::iq4_nl::format.encode;  // a rule for its own table
    CHECK_FALSE(nibble::detail::make_encoder(f, offset_kind::none, e));
}

TEST_CASE("16-bit kernels give the codes of encode and the floats of the conversions", "[quantize][kernels]") {
    const std::vector<float> x = finite_floats();
    for_each_isa([&](nibble::isa) {
        for (const std::size_t count : {x.size(), x.size() - 1, std::size_t{3}}) {
            guarded_buffer<std::uint16_t> fp16(count), bf16(count);
            codec().encode_fp16(x.data(), static_cast<Index>(count), fp16.data());
            codec().encode_bf16(x.data(), static_cast<Index>(count), bf16.data());
            Index wrong = 0;
            for (std::size_t i = 0; i < count; ++i) {
                wrong += fp16[i] != nibble::fp16::format.encode(nibble::fp16::format, x[i]) ? 1 : 0;
                wrong += bf16[i] != nibble::bf16::format.encode(nibble::bf16::format, x[i]) ? 1 : 0;
            }
            REQUIRE(wrong == 0);
        }
        for (const std::size_t count : {std::size_t{0x10000}, std::size_t{0xfff7}}) {
            guarded_buffer<std::uint16_t> h(count);
            guarded_buffer<float> a(count), b(count);
            for (std::size_t i = 0; i < count; ++i) h[i] = static_cast<std::uint16_t>(i);
            codec().load_fp16(h.data(), static_cast<Index>(count), a.data());
            codec().load_bf16(h.data(), static_cast<Index>(count), b.data());
            for (std::size_t i = 0; i < count; ++i) {
                const float expected = nibble::fp16_to_float(h[i]);
                const bool nan = (h[i] & 0x7fffu) > 0x7c00u;  // the hardware makes NaN quiet; quantize() refuses both
                REQUIRE((same(a[i], expected) || (nan && (bits_of(a[i]) & 0x7fffffffu) > 0x7f800000u)));
                REQUIRE(same(b[i], nibble::bf16_to_float(h[i])));
            }
        }
        guarded_buffer<double> d(83);
        guarded_buffer<float> c(83);
        for (std::size_t i = 0; i < 83; ++i) d[i] = (static_cast<double>(number(static_cast<Index>(i))) + 0x1p-30) * (1.0 + 0x1p-24);
        codec().load_f64(d.data(), 83, c.data());
        for (std::size_t i = 0; i < 83; ++i) REQUIRE(same(c[i], static_cast<float>(d[i])));
    });
}

TEST_CASE("scales are rounded and inverted as one by one", "[quantize][kernels]") {
    using nibble::detail::stored_float;
    const std::vector<float> all = finite_floats();
    for_each_isa([&](nibble::isa) {
        guarded_buffer<float> inverse(all.size());
        codec().invert(all.data(), static_cast<Index>(all.size()), inverse.data());
        Index wrong = 0;
        for (std::size_t i = 0; i < all.size(); ++i) wrong += same(inverse[i], nibble::detail::inverse(all[i])) ? 0 : 1;
        REQUIRE(wrong == 0);
        for (const auto storage : {nibble::scale_storage::f32, nibble::scale_storage::f16, nibble::scale_storage::bf16}) {
            const stored_float s = storage == nibble::scale_storage::f32   ? stored_float::f32
                                   : storage == nibble::scale_storage::f16 ? stored_float::f16
                                                                           : stored_float::bf16;
            for (const offset_kind kind : kinds)
                for (std::size_t first = 0; first + 19 <= all.size(); first += 4099) {
                    const std::size_t count = 1 + first % 19;
                    const nibble::detail::scale_rounding r{s, kind == offset_kind::minimum || kind == offset_kind::float_zero,
                                                           kind == offset_kind::none ? 7.0f : 0.0f, kind == offset_kind::none ? 7.0f : 15.0f,
                                                           kind == offset_kind::zero_point || kind == offset_kind::float_zero,
                                                           kind == offset_kind::minimum};
                    guarded_buffer<float> scale(count), offset(count);
                    guarded_buffer<std::uint32_t> scale_bits(count), offset_bits(count);
                    for (std::size_t i = 0; i < count; ++i) {
                        scale[i] = all[first + i];
                        offset[i] = kind == offset_kind::zero_point ? static_cast<float>(i % 16) : all[all.size() - 1 - first - i];
                    }
                    const std::vector<float> was(scale.data(), scale.data() + count), was_offset(offset.data(), offset.data() + count);
                    const bool fits = codec().round_scales(r, static_cast<Index>(count), scale.data(), offset.data(), scale_bits.data(), offset_bits.data());
                    bool expected = true;
                    for (std::size_t i = 0; i < count; ++i) {
                        const std::uint32_t u = nibble::detail::encode_stored(storage, was[i]);
                        const float d = nibble::detail::decode_stored(storage, u);
                        float o = was_offset[i];
                        REQUIRE(scale_bits[i] == u);
                        REQUIRE(same(scale[i], d));
                        if (r.rounds_offset) {
                            REQUIRE(offset_bits[i] == nibble::detail::encode_stored(storage, o));
                            o = nibble::detail::decode_stored(storage, offset_bits[i]);
                        }
                        REQUIRE(same(offset[i], o));
                        const float low = kind == offset_kind::none ? -d * 7.0f : nibble::detail::decode_weight(nibble::int4::format, kind, 0, d, o);
                        const float high = r.subtracts ? d * (15.0f - o) : d * r.high;
                        for (const float v : {d, o, low, high}) expected = expected && nibble::detail::is_finite_bits(bits_of(v));
                    }
                    REQUIRE(fits == expected);
                }
        }
        for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()})
            for (const bool in_scale : {false, true}) {
                float scale[3] = {1.0f, 1.0f, in_scale ? bad : 1.0f};
                float offset[3] = {1.0f, in_scale ? 1.0f : bad, 1.0f};
                std::uint32_t bits[6];
                CHECK_FALSE(codec().round_scales({stored_float::f16, false, 7.0f, 7.0f, false, false}, 3, scale, offset, bits, bits + 3));
            }
    });
}

TEST_CASE("pack writes what put_code writes", "[quantize][kernels]") {
    for_each_isa([](nibble::isa) {
        for (const int bits : {1, 2, 3, 4, 5, 6, 8, 16})
            for (const Index positions : {4, 8, 28, 32, 36, 60, 64, 68, 128, 132, 252})
                for (const bool stream : {false, true}) {
                    const nibble::detail::layout l = nibble::detail::make_layout(16, positions, bits, nibble::scales::f32, offset_kind::none, {1, 0});
                    const Index width = bits == 16 ? 2 : 1;
                    const Index stride = (positions * width + 63) / 64 * 64 + 64;
                    guarded_buffer<std::uint8_t> codes(static_cast<std::size_t>(16 * stride));
                    std::memset(codes.data(), 0, codes.size());
                    std::vector<std::uint8_t> expected(static_cast<std::size_t>(l.panel_bytes), 0);
                    for (int r = 0; r < 16; ++r)
                        for (Index k = 0; k < positions; ++k) {
                            const unsigned code = static_cast<unsigned>((r * 131 + k * 2957 + 77) * 40503) >> 3 & ((1u << bits) - 1);
                            std::memcpy(codes.data() + r * stride + k * width, &code, static_cast<std::size_t>(width));
                            nibble::detail::put_code(expected.data(), bits, r, k, code);
                        }
                    guarded_buffer<std::uint8_t> cells(expected.size());  // whole cells: aligned to 64 bytes at either end
                    codec().pack(codes.data(), stride, bits, cells.data(), l.panel_bytes, stream);
                    INFO(bits << " bits, " << positions << " positions");
                    REQUIRE(std::memcmp(cells.data(), expected.data(), expected.size()) == 0);
                }
    });
}

TEST_CASE("decode gives decode_weight of every code", "[dequantize][kernels]") {
    for_each_isa([](nibble::isa) {
        std::vector<code_format> formats;
        for (const code_format* f : nibble::formats()) formats.push_back(*f);
        std::vector<float> odd(8, 0.0f);  // a table of fewer than 16 entries, and integers that are not a line
        for (std::size_t u = 0; u < odd.size(); ++u) odd[u] = static_cast<float>(u * u) - 3.0f;
        formats.push_back(nibble::int3::format);
        formats.back().values = odd.data();
        formats.push_back(formats.back());
        formats.back().decode = nibble::decode_class::table;
        for (const code_format& f : formats)
            for (const offset_kind kind : kinds) {
                if (kind != offset_kind::none && !has_offset(f)) continue;
                nibble::detail::decoder d;
                float padded[16];
                REQUIRE(nibble::detail::make_decoder(f, kind, d, padded));
                const auto count = static_cast<Index>(f.code_count());
                const Index positions = (std::max)(Index{64}, count / 16 + 64);
                const nibble::detail::layout l = nibble::detail::make_layout(16, positions, f.bits, nibble::scales::f32, offset_kind::none, {1, 0});
                guarded_buffer<std::uint8_t> panel(static_cast<std::size_t>(l.panel_bytes));
                std::memset(panel.data(), 0, panel.size());
                for (int r = 0; r < 16; ++r)
                    for (Index k = 0; k < positions; ++k)
                        nibble::detail::put_code(panel.data(), f.bits, r, k, static_cast<unsigned>((k * 16 + r) % count));
                float scale[16], offset[16];
                for (int r = 0; r < 16; ++r) {
                    scale[r] = r == 3 ? 0.0f : r == 4 ? -1.5f : r == 5 ? 0x1p-140f : r == 6 ? 0x1p120f : 0.3f + static_cast<float>(r);
                    offset[r] = kind == offset_kind::minimum ? -0.7f * static_cast<float>(r) : static_cast<float>(r % 3);
                    if (kind == offset_kind::float_zero) offset[r] += 0.3f;
                }
                for (const Index first : {0, 1, 3, 9})
                    for (const Index stride : {16, 19}) {
                        const Index quads = positions / 4 - first;
                        guarded_buffer<float> out(static_cast<std::size_t>((4 * quads - 1) * stride + 16));
                        codec().decode(d, panel.data(), first, quads, scale, offset, out.data(), stride);
                        Index wrong = 0;
                        for (Index k = 0; k < 4 * quads; ++k)
                            for (int r = 0; r < 16; ++r) {
                                const unsigned code = static_cast<unsigned>(((4 * first + k) * 16 + r) % count);
                                const float expected = nibble::detail::decode_weight(f, kind, code, scale[r], offset[r]);
                                wrong += same(out[static_cast<std::size_t>(k * stride + r)], expected) ? 0 : 1;
                            }
                        INFO(f.name << ", " << name_of(kind) << ", from quad " << first);
                        REQUIRE(wrong == 0);
                    }
            }
    });
}

TEST_CASE("transpose", "[quantize][kernels]") {
    for_each_isa([](nibble::isa) {
        for (const Index stride : {64, 68, 100})
            for (const Index out_stride : {64, 80}) {
                guarded_buffer<std::uint8_t> from(static_cast<std::size_t>(15 * stride + 64)), to(static_cast<std::size_t>(15 * out_stride + 64));
                for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<std::uint8_t>(i * 7 + i / 256);
                codec().transpose(from.data(), stride, to.data(), out_stride);
                for (Index r = 0; r < 16; ++r)
                    for (Index c = 0; c < 16; ++c)
                        REQUIRE(std::memcmp(from.data() + r * stride + 4 * c, to.data() + c * out_stride + 4 * r, 4) == 0);
            }
    });
}

TEST_CASE("every layout and type of the weights gives the same matrix", "[quantize][kernels]") {
    using nibble::scalar_type;
    for_each_isa([](nibble::isa) {
        for (const Index rows : {1, 15, 16, 17, 70, 130})
            for (const Index cols : {1, 16, 37, 96}) {
                const auto count = static_cast<std::size_t>(rows * cols);
                std::vector<float> x(count);
                guarded_buffer<float> row_floats(count), column_floats(count), spread(2 * count);
                guarded_buffer<double> row_doubles(count), column_doubles(count);
                guarded_buffer<std::uint16_t> row_halves(count), column_halves(count), row_bf16(count), column_bf16(count);
                for (Index n = 0; n < rows; ++n)
                    for (Index k = 0; k < cols; ++k) {
                        const auto r = static_cast<std::size_t>(n * cols + k);
                        const auto c = static_cast<std::size_t>(k * rows + n);
                        const float v = static_cast<float>((n * 131 + k * 57) % 251 - 125) * 0.25f;  // exact in all of them
                        x[r] = row_floats[r] = column_floats[c] = spread[2 * c] = v;
                        row_doubles[r] = column_doubles[c] = static_cast<double>(v);
                        row_halves[r] = column_halves[c] = nibble::float_to_fp16(v);
                        row_bf16[r] = column_bf16[c] = nibble::float_to_bf16(v);
                    }
                const nibble::const_view views[] = {
                    {row_floats.data(), scalar_type::f32, rows, cols, cols, 1},     {column_floats.data(), scalar_type::f32, rows, cols, 1, rows},
                    {spread.data(), scalar_type::f32, rows, cols, 2, 2 * rows},     {row_doubles.data(), scalar_type::f64, rows, cols, cols, 1},
                    {column_doubles.data(), scalar_type::f64, rows, cols, 1, rows}, {row_halves.data(), scalar_type::f16, rows, cols, cols, 1},
                    {column_halves.data(), scalar_type::f16, rows, cols, 1, rows},  {row_bf16.data(), scalar_type::bf16, rows, cols, cols, 1},
                    {column_bf16.data(), scalar_type::bf16, rows, cols, 1, rows}};
                for (const char* name : {"int8_per_channel", "int4_min_g64", "nf4", "fp8_block128", "bf16"}) {
                    const nibble::quantize_plan plan = nibble::make_plan(*nibble::find_recipe(name));
                    const nibble::qmatrix first = nibble::quantize(nibble::row_major(x.data(), rows, cols), plan);
                    for (const nibble::const_view& v : views) {
                        const nibble::qmatrix w = nibble::quantize(v, plan);
                        REQUIRE(w.memory_bytes() == first.memory_bytes());
                        REQUIRE(std::memcmp(w.data(), first.data(), w.memory_bytes()) == 0);
                    }
                }
            }
    });
}

TEST_CASE("the element that is not finite is named in every layout", "[quantize][kernels]") {
    constexpr Index rows = 70, cols = 37;
    for_each_isa([](nibble::isa) {
        for (const bool by_column : {false, true})
            for (const Index n : {0, 15, 16, 63, 64, 69})
                for (const Index k : {0, 15, 16, 31, 32, 36})
                    for (const char* name : {"int8_per_channel", "int4_zero_g128", "q4_k", "fp8_block128", "nf4_double", "bf16"}) {
                        std::vector<float> x(rows * cols, 0.5f);
                        const auto at = [&](Index r, Index c) { return static_cast<std::size_t>(by_column ? c * rows + r : r * cols + c); };
                        x[at(n, k)] = float_of(0xff800000u);
                        x[at(rows - 1, cols - 1)] = float_of(0x7fc00000u);
                        const nibble::const_view v = by_column ? nibble::column_major(x.data(), rows, cols) : nibble::row_major(x.data(), rows, cols);
                        const nibble::quantize_plan plan = nibble::make_plan(*nibble::find_recipe(name));
                        std::string text;
                        try {
                            static_cast<void>(nibble::quantize(v, plan));
                        } catch (const nibble::error& e) {
                            text = e.what();
                        }
                        const bool last = n == rows - 1 && k == cols - 1;
                        const std::string expected = "W(" + std::to_string(n) + ", " + std::to_string(k) + ") is " + (last ? "nan" : "-inf");
                        INFO(text);
                        REQUIRE(text.find(expected) != std::string::npos);
                    }
    });
}

TEST_CASE("dequantize writes the same weights to every layout and nothing else", "[dequantize][kernels]") {
    for_each_isa([](nibble::isa) {
        for (const Index rows : {1, 16, 17, 48})
            for (const Index cols : {1, 5, 64, 259, 600})
                for (const Index group : {1, 6, 16, 31, 64, 600}) {
                    std::vector<float> x(static_cast<std::size_t>(rows * cols));
                    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>((i * 7919) % 1009) - 504.0f;
                    const nibble::qmatrix w = nibble::quantize(nibble::row_major(x.data(), rows, cols),
                                                               nibble::make_plan(nibble::format_handle(nibble::int4::format), nibble::detail::rules::absmax,
                                                                                 nibble::per_group{group}));
                    const Index gap = 3;
                    const Index strides[][2] = {{cols, 1}, {1, rows}, {cols + gap, 1}, {1, rows + gap}, {2, 2 * rows}};
                    for (const auto& s : strides) {
                        guarded_buffer<float> out(static_cast<std::size_t>((rows - 1) * s[0] + (cols - 1) * s[1] + 1));
                        nibble::dequantize(w, {out.data(), rows, cols, s[0], s[1]});
                        std::vector<bool> written(out.size(), false);
                        Index wrong = 0;
                        for (Index n = 0; n < rows; ++n)
                            for (Index k = 0; k < cols; ++k) {
                                const auto at = static_cast<std::size_t>(n * s[0] + k * s[1]);
                                written[at] = true;
                                wrong += same(out[at], w(n, k)) ? 0 : 1;
                            }
                        for (std::size_t i = 0; i < out.size(); ++i) wrong += written[i] || bits_of(out[i]) == 0xa5a5a5a5u ? 0 : 1;
                        REQUIRE(wrong == 0);
                    }
                }
    });
}
