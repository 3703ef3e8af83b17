// Layers that the golden checkpoints do not have, made by hand and decoded by the definition of their layout: act-order
// groups of any size, blocks that cross rows, tables of one's own, every packing of compressed-tensors and HQQ.
#include "nibble/io/checkpoint.hpp"

#include <bit>
#include <functional>
#include <random>

#include "support/catch.hpp"

namespace {

namespace st = nibble::io::safetensors;
namespace layouts = nibble::io::layouts;
using extent = nibble::index;  // index is a function of <strings.h>
using nibble::io::linear;
using st::dtype;

std::mt19937 random_source(11);
[[nodiscard]] unsigned below(unsigned n) { return static_cast<unsigned>(random_source() % n); }

/// A tensor with its elements.
struct owned {
    st::tensor_data data;
    [[nodiscard]] st::tensor view() const { return data.view(); }
};

template <class T>
[[nodiscard]] owned make(const std::string& name, dtype type, std::vector<std::uint64_t> shape,
                         const std::vector<T>& values) {
    owned o{{name, type, std::move(shape), {}}};
    o.data.bytes.resize(values.size() * sizeof(T));
    if (!values.empty()) std::memcpy(o.data.bytes.data(), values.data(), o.data.bytes.size());
    return o;
}
[[nodiscard]] owned make_floats(const std::string& name, std::vector<std::uint64_t> shape,
                                const std::vector<float>& v) {
    return make(name, dtype::f32, std::move(shape), v);
}
[[nodiscard]] std::vector<float> some_floats(std::size_t n, float size = 1.0f) {
    std::vector<float> v;
    for (std::size_t i = 0; i < n; ++i) v.push_back(size * (static_cast<float>(below(2001)) - 1000.0f) / 977.0f);
    return v;
}
[[nodiscard]] std::vector<unsigned> some_codes(std::size_t n, unsigned bits) {
    std::vector<unsigned> v;
    for (std::size_t i = 0; i < n; ++i) v.push_back(below(1u << bits));
    return v;
}

[[nodiscard]] std::size_t at(extent a) { return static_cast<std::size_t>(a); }
[[nodiscard]] std::uint64_t d(extent a) { return static_cast<std::uint64_t>(a); }

/// A stream of bits, one at a time.
void put_bits(std::vector<std::uint32_t>& words, std::size_t bit, unsigned bits, unsigned value) {
    for (unsigned i = 0; i < bits; ++i)
        if (((value >> i) & 1u) != 0) words[(bit + i) / 32] |= 1u << ((bit + i) % 32);
}

[[nodiscard]] float rounded_product(float a, float b) {
    volatile float p = a * b;
    return p;
}
[[nodiscard]] float rounded_sum(float a, float b) {
    volatile float s = a + b;
    return s;
}

void check_weights(const nibble::result<linear>& layer, extent rows, extent cols,
                   const std::function<float(extent, extent)>& right) {
    if (!layer) FAIL(layer.failure().message);
    const Eigen::MatrixXf w = nibble::io::dequantize(layer.value());
    REQUIRE(w.rows() == rows);
    REQUIRE(w.cols() == cols);
    extent wrong = 0;
    for (extent n = 0; n < rows; ++n)
        for (extent k = 0; k < cols; ++k) {
            if (std::bit_cast<std::uint32_t>(w(n, k)) == std::bit_cast<std::uint32_t>(right(n, k))) continue;
            if (wrong++ == 0) {
                INFO("(" << n << ", " << k << "): " << w(n, k) << ", not " << right(n, k));
                CHECK(false);
            }
        }
    CHECK(wrong == 0);
}

/// W X against sums of the decoded weights in double.
void check_product(const linear& layer, const std::function<float(extent, extent)>& right) {
    const extent rows = layer.weight.rows(), cols = layer.weight.cols();
    const std::vector<float> v = some_floats(at(cols * 5));
    const Eigen::MatrixXf x = Eigen::Map<const Eigen::MatrixXf>(v.data(), cols, 5);
    const Eigen::MatrixXf y = nibble::io::multiply(layer, x);
    for (extent m = 0; m < 5; ++m)
        for (extent n = 0; n < rows; ++n) {
            double sum = 0.0, magnitude = 0.0;
            for (extent k = 0; k < cols; ++k) {
                const double term = static_cast<double>(right(n, k)) * static_cast<double>(x(k, m));
                sum += term;
                magnitude += std::abs(term);
            }
            CHECK(std::abs(static_cast<double>(y(n, m)) - sum) <= 4e-6 * magnitude + 1e-30);
        }
}

}  // namespace

TEST_CASE("GPTQ: every width, v1 and v2, groups of any shape") {
    for (const int bits : {2, 3, 4, 8})
        for (const bool v2 : {false, true})
            for (const int order : {0, 1, 2, 3, 4}) {
                // 0: no g_idx; 1: shuffled, equal groups; 2: any group; 3: all in group 1; 4: in order, unequal
                const extent rows = 32, cols = 96, size = 32, groups = 3;
                const auto b = static_cast<unsigned>(bits);
                const std::vector<unsigned> code = some_codes(at(rows * cols), b),
                                            zero = some_codes(at(groups * rows), b);
                std::vector<std::int32_t> g_idx(at(cols));
                for (extent k = 0; k < cols; ++k)
                    g_idx[at(k)] = static_cast<std::int32_t>(order == 2   ? extent{below(3)}
                                                             : order == 3 ? 1
                                                             : order == 4 ? (k < 12   ? 0
                                                                             : k < 72 ? 1
                                                                                      : 2)
                                                                          : k / size);
                if (order == 1) std::shuffle(g_idx.begin(), g_idx.end(), random_source);
                std::vector<std::uint32_t> qweight(at(cols * bits / 32 * rows)), qzeros;
                for (extent n = 0; n < rows; ++n) {
                    std::vector<std::uint32_t> column(at(cols * bits / 32));
                    for (extent k = 0; k < cols; ++k) put_bits(column, at(k) * b, b, code[at(n * cols + k)]);
                    for (std::size_t i = 0; i < column.size(); ++i) qweight[i * at(rows) + at(n)] = column[i];
                }
                for (extent g = 0; g < groups; ++g) {
                    std::vector<std::uint32_t> row(at(rows * bits / 32));
                    for (extent n = 0; n < rows; ++n) {
                        const unsigned z = zero[at(g * rows + n)];
                        put_bits(row, at(n) * b, b, !v2 && bits == 3 ? (z + 7u) & 7u : z);
                    }
                    for (std::uint32_t& w : row) {
                        if (!v2 && bits != 3) w -= bits == 2 ? 0x55555555u : bits == 4 ? 0x11111111u : 0x01010101u;
                        qzeros.push_back(w);
                    }
                }
                const std::vector<float> scale = some_floats(at(groups * rows), 0.1f);
                const owned q = make("q.qweight", dtype::i32, {d(cols * bits / 32), d(rows)}, qweight),
                            z = make("q.qzeros", dtype::i32, {d(groups), d(rows * bits / 32)}, qzeros),
                            s = make_floats("q.scales", {d(groups), d(rows)}, scale),
                            g = make("q.g_idx", dtype::i32, {d(cols)}, g_idx);
                const st::tensor g_view = g.view();
                INFO(bits << " bits, v" << (v2 ? 2 : 1) << ", order " << order);
                const auto layer = layouts::gptq::unpack(q.view(), z.view(), s.view(), order == 0 ? nullptr : &g_view,
                                                         nullptr, {bits, size, v2, order != 0});
                const auto right = [&](extent n, extent k) {
                    const extent group = g_idx[at(k)];
                    return scale[at(group * rows + n)] *
                           static_cast<float>(static_cast<int>(code[at(n * cols + k)]) -
                                              static_cast<int>(zero[at(group * rows + n)]));
                };
                check_weights(layer, rows, cols, right);
                CHECK(layer.value().permutation.empty() == (order != 1 && order != 2));
                if (order == 1) CHECK(layer.value().weight.group_size() == size);
                if (order == 3) CHECK(layer.value().weight.groups() == 1);
                if (order == 4) CHECK(layer.value().weight.group_size() == 12);
                check_product(layer.value(), right);
            }
}

TEST_CASE("bitsandbytes: blocks that cross rows, short last blocks, tables and nested maps of any kind") {
    for (const extent rows : {1, 5})
        for (const extent cols : {64, 96, 100, 33, 7})
            for (const int kind :
                 {0, 1, 2,
                  3}) {  // 0: nf4; 1: a table of one's own; 2: nested, the library's map; 3: nested, another map
                const extent count = rows * cols, block = 64, blocks = (count + block - 1) / block;
                const extent nested_block = kind == 3 ? 2 : 256;
                std::vector<float> map(nibble::nf4::format.values, nibble::nf4::format.values + 16);
                if (kind == 1) map = some_floats(16);
                const std::vector<unsigned> code = some_codes(at(count), 4);
                std::vector<std::uint8_t> packed(at((count + 1) / 2));
                for (extent i = 0; i < count; ++i)
                    packed[at(i / 2)] =
                        static_cast<std::uint8_t>(packed[at(i / 2)] | code[at(i)] << (i % 2 == 0 ? 4 : 0));
                const std::vector<float> absmax = some_floats(at(blocks));
                std::vector<std::uint8_t> nested_codes;
                for (extent i = 0; i < blocks; ++i) nested_codes.push_back(static_cast<std::uint8_t>(below(256)));
                std::vector<float> nested_map(nibble::detail::signed_dynamic_map.values.begin(),
                                              nibble::detail::signed_dynamic_map.values.end());
                if (kind == 3) nested_map = some_floats(256);
                const std::vector<float> nested_absmax = some_floats(at((blocks + nested_block - 1) / nested_block));
                const auto offset = static_cast<float>(0.16138800978660583);
                std::string json = R"({"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [)" +
                                   std::to_string(rows) + ", " + std::to_string(cols) + "]";
                if (kind >= 2)
                    json += R"(, "nested_blocksize": )" + std::to_string(nested_block) +
                            R"(, "nested_dtype": "float32", "nested_offset": 0.16138800978660583)";
                json += "}";
                const owned w = make("w", dtype::u8, {d((count + 1) / 2), 1}, packed),
                            a = kind >= 2 ? make("a", dtype::u8, {d(blocks)}, nested_codes)
                                          : make_floats("a", {d(blocks)}, absmax),
                            m = make_floats("m", {16}, map),
                            s = make("s", dtype::u8, {json.size()}, std::vector<char>(json.begin(), json.end())),
                            na = make_floats("na", {nested_absmax.size()}, nested_absmax),
                            nm = make_floats("nm", {256}, nested_map);
                const st::tensor wv = w.view(), av = a.view(), mv = m.view(), sv = s.view(), nav = na.view(),
                                 nmv = nm.view();
                INFO(rows << "x" << cols << ", kind " << kind);
                const auto layer = layouts::bitsandbytes::unpack_four_bit(
                    {&wv, &av, &mv, &sv, kind >= 2 ? &nav : nullptr, kind >= 2 ? &nmv : nullptr, nullptr});
                const auto right = [&](extent n, extent k) {
                    const extent i = n * cols + k;
                    float scale = absmax[at(i / block)];
                    if (kind >= 2)
                        scale = rounded_sum(rounded_product(nested_map[nested_codes[at(i / block)]],
                                                            nested_absmax[at(i / block / nested_block)]),
                                            offset);
                    return rounded_product(scale, map[code[at(i)]]);
                };
                check_weights(layer, rows, cols, right);
                if (cols % 64 == 0 && kind == 2)
                    CHECK(layer.value().weight.scheme().storage == nibble::scale_storage::double_quantized);
                if (cols == 96 && rows == 5) CHECK(layer.value().weight.group_size() == 32);
                check_product(layer.value(), right);
            }
}

TEST_CASE("compressed-tensors: every width, grouping and kind of zero point") {
    for (const int bits : {1, 2, 3, 4, 5, 6, 7, 8})
        for (const int grouping : {0, 1, 2, 3})  // tensor, channel, groups of 16, groups of 16 by g_idx
            for (const int zeros : {0, 1, 2}) {  // none, packed, all in the middle
                const extent rows = 21, cols = 80;
                const auto b = static_cast<unsigned>(bits);
                const extent r = grouping == 0 ? 1 : rows, groups = grouping < 2 ? 1 : 5;
                const std::vector<unsigned> code = some_codes(at(rows * cols), b);
                std::vector<unsigned> zero = some_codes(at(r * groups), b);
                if (zeros != 1) std::fill(zero.begin(), zero.end(), 1u << (b - 1));
                const std::vector<float> scale = some_floats(at(r * groups), 0.1f);
                const extent words = (cols * bits + 31) / 32, zero_words = (r * bits + 31) / 32;
                std::vector<std::uint32_t> packed, packed_zeros(at(zero_words * groups));
                for (extent n = 0; n < rows; ++n) {
                    std::vector<std::uint32_t> row(at(words));
                    for (extent k = 0; k < cols; ++k) put_bits(row, at(k) * b, b, code[at(n * cols + k)]);
                    packed.insert(packed.end(), row.begin(), row.end());
                }
                for (extent g = 0; g < groups; ++g) {
                    std::vector<std::uint32_t> column(at(zero_words));
                    for (extent n = 0; n < r; ++n) put_bits(column, at(n) * b, b, zero[at(n * groups + g)]);
                    for (extent i = 0; i < zero_words; ++i) packed_zeros[at(i * groups + g)] = column[at(i)];
                }
                std::vector<std::int32_t> g_idx(at(cols));
                for (extent k = 0; k < cols; ++k) g_idx[at(k)] = static_cast<std::int32_t>(grouping < 2 ? 0 : k / 16);
                if (grouping == 3) std::shuffle(g_idx.begin(), g_idx.end(), random_source);
                const owned w = make("w", dtype::i32, {d(rows), d(words)}, packed),
                            s = grouping == 0 ? make_floats("s", {1}, scale)
                                              : make_floats("s", {d(r), d(groups)}, scale),
                            z = make("z", dtype::i32, {d(zero_words), d(groups)}, packed_zeros),
                            shape = make("sh", dtype::i64, {2}, std::vector<std::int64_t>{rows, cols}),
                            gi = make("g", dtype::i32, {d(cols)}, g_idx);
                const st::tensor wv = w.view(), sv = s.view(), zv = z.view(), shv = shape.view(), gv = gi.view();
                const nibble::granularity tile = grouping == 0   ? nibble::granularity{0, 0}
                                                 : grouping == 1 ? nibble::granularity{1, 0}
                                                                 : nibble::granularity{1, 16};
                INFO(bits << " bits, grouping " << grouping << ", zeros " << zeros);
                const auto layer = layouts::compressed_tensors::unpack_integers(
                    {&wv, &sv, &shv, zeros != 0 ? &zv : nullptr, grouping == 3 ? &gv : nullptr, nullptr},
                    {bits, tile, zeros == 0});
                const auto right = [&](extent n, extent k) {
                    const std::size_t i = at((grouping == 0 ? 0 : n) * groups + g_idx[at(k)]);
                    return scale[i] *
                           static_cast<float>(static_cast<int>(code[at(n * cols + k)]) - static_cast<int>(zero[i]));
                };
                check_weights(layer, rows, cols, right);
                CHECK((layer.value().weight.offset_type() == nibble::offset_kind::none) ==
                      (zeros != 1 ||
                       std::all_of(zero.begin(), zero.end(), [&](unsigned u) { return u == 1u << (b - 1); })));
                check_product(layer.value(), right);
            }
}

TEST_CASE("compressed-tensors: int-quantized with zero points") {
    const extent rows = 19, cols = 64, groups = 2;
    std::vector<std::int8_t> code, zero;
    for (extent i = 0; i < rows * cols; ++i)
        code.push_back(static_cast<std::int8_t>(static_cast<int>(below(256)) - 128));
    for (extent i = 0; i < rows * groups; ++i)
        zero.push_back(static_cast<std::int8_t>(static_cast<int>(below(256)) - 128));
    const std::vector<float> scale = some_floats(at(rows * groups));
    const owned w = make("w", dtype::i8, {d(rows), d(cols)}, code), s = make_floats("s", {d(rows), d(groups)}, scale),
                z = make("z", dtype::i8, {d(rows), d(groups)}, zero);
    const st::tensor wv = w.view(), sv = s.view(), zv = z.view();
    const auto layer =
        layouts::compressed_tensors::unpack_integers({&wv, &sv, nullptr, &zv, nullptr, nullptr}, {8, {1, 32}, false});
    const auto right = [&](extent n, extent k) {
        const std::size_t i = at(n * groups + k / 32);
        return scale[i] * static_cast<float>(code[at(n * cols + k)] - zero[i]);
    };
    check_weights(layer, rows, cols, right);
    check_product(layer.value(), right);
}

TEST_CASE("HQQ: every width on both axes, and groups that cross rows") {
    for (const int bits : {1, 2, 3, 4, 8})
        for (const int axis : {0, 1})
            for (const extent cols : {64, 48, 20})
                for (const bool mixed : {false, true}) {  // scale and zero of different types
                    const extent rows = 32, size = 32, count = rows * cols;
                    const extent height = axis == 1 ? count / size : size, width = axis == 1 ? size : count / size;
                    if (bits != 3 && height % (8 / bits) != 0) continue;  // HQQ cannot pack those
                    const auto b = static_cast<unsigned>(bits);
                    const std::vector<unsigned> code = some_codes(at(count), b);
                    const std::vector<float> scale = some_floats(at(axis == 1 ? height : width));
                    std::vector<float> zero = some_floats(scale.size(), 8.0f);
                    std::vector<std::uint16_t> zero16;
                    for (float& z : zero) {
                        zero16.push_back(nibble::float_to_fp16(z));
                        if (mixed) z = nibble::fp16_to_float(zero16.back());
                    }
                    const extent parts = bits == 3 ? 10 : 8 / bits, packed_rows = (height + parts - 1) / parts;
                    std::vector<std::uint32_t> words(at(packed_rows * width));
                    for (extent r = 0; r < height; ++r)
                        for (extent c = 0; c < width; ++c) {
                            const extent part = r / packed_rows;
                            const auto shift = static_cast<unsigned>(bits == 3 ? 27 - 3 * part : 8 - bits * (part + 1));
                            words[at(r % packed_rows * width + c)] |= code[at(r * width + c)] << shift;
                        }
                    const owned w = bits == 3 ? make("W_q", dtype::i32, {d(packed_rows), d(width)}, words)
                                              : make("W_q", dtype::u8, {d(packed_rows), d(width)},
                                                     std::vector<std::uint8_t>(words.begin(), words.end()));
                    const std::vector<std::uint64_t> shape =
                        axis == 1 ? std::vector<std::uint64_t>{d(height), 1} : std::vector<std::uint64_t>{1, d(width)};
                    const owned s = make_floats("scale", shape, scale),
                                z = mixed ? make("zero", dtype::f16, shape, zero16) : make_floats("zero", shape, zero);
                    INFO(bits << " bits, axis " << axis << ", " << cols << " columns, " << mixed);
                    const auto layer =
                        layouts::hqq::unpack(w.view(), s.view(), z.view(), nullptr, {bits, size, axis, rows, cols});
                    const auto right = [&](extent n, extent k) {
                        const extent i = n * cols + k;
                        const std::size_t g = at(axis == 1 ? i / width : i % width);
                        return rounded_product(rounded_sum(static_cast<float>(code[at(i)]), -zero[g]), scale[g]);
                    };
                    check_weights(layer, rows, cols, right);
                    if (axis == 1) CHECK(layer.value().weight.group_size() == std::gcd(size, cols));
                }
}

TEST_CASE("NVFP4: a divisor is a factor where that is exact, else scales are quotients") {
    const extent rows = 17, cols = 48;
    std::vector<std::uint8_t> packed(at(rows * cols / 2)), scale(at(rows * cols / 16));
    int kept = 0;
    for (int round = 0; round < 40; ++round) {
        for (std::uint8_t& u : packed) u = static_cast<std::uint8_t>(below(256));
        for (std::uint8_t& u : scale) u = static_cast<std::uint8_t>(round < 20 ? 0x30 + below(4) : below(0x7f));
        const float divisor = round == 0 ? 512.0f : 100.0f + static_cast<float>(below(1000000)) / 777.0f;
        const owned w = make("w", dtype::u8, {d(rows), d(cols / 2)}, packed),
                    s = make("s", dtype::f8_e4m3, {d(rows), d(cols / 16)}, scale), g = make_floats("g", {1}, {divisor});
        const auto layer = layouts::nvfp4::unpack(w.view(), s.view(), g.view(), nullptr, true);
        const auto right = [&](extent n, extent k) {
            const extent i = n * cols + k;
            volatile float q = nibble::fp8_e4m3::decode(scale[at(i / 16)]) / divisor;
            return rounded_product(q, nibble::fp4_e2m1::decode(unsigned{packed[at(i / 2)]} >> (4 * (i % 2)) & 15u));
        };
        check_weights(layer, rows, cols, right);
        const bool compact = layer.value().weight.scheme().storage == nibble::scale_storage::e4m3_f32;
        kept += compact ? 1 : 0;
        if (round == 0) CHECK(compact);
        if (round == 1) check_product(layer.value(), right);
    }
    CHECK(kept > 0);
    CHECK(kept < 40);
}

TEST_CASE("plain weights: F16 and BF16 as they are, F32 where one of them holds it") {
    const auto of = [](const owned& t) { return layouts::plain::unpack(t.view(), nullptr); };
    const std::vector<float> both = {0.5f, -2.0f, 0.0f, -0.0f, 1.5f, 6.0f},
                             wide = {0.5f, 0x1p100f, 1.0f, 2.0f, 3.0f, 4.0f},
                             fine = {1.0009765625f, 2.0f, 3.0f, 4.0f, 5.0f, 0.5f},
                             neither = {1.0009765625f, 70000.0f, 1.0f, 1.0f, 1.0f, 0.1f};
    for (auto& v : {both, wide, fine})
        check_weights(of(make_floats("w", {2, 3}, v)), 2, 3, [&](extent n, extent k) { return v[at(n * 3 + k)]; });
    CHECK(of(make_floats("w", {2, 3}, wide)).value().weight.name() == "bf16");
    CHECK(of(make_floats("w", {2, 3}, fine)).value().weight.name() == "fp16");
    CHECK(of(make_floats("w", {2, 3}, neither)).failure().code == nibble::errc::unsupported);
    const owned half = make("w", dtype::f16, {1, 2}, std::vector<std::uint16_t>{0x3c00, 0xc000});
    check_weights(of(half), 1, 2, [](extent, extent k) { return k == 0 ? 1.0f : -2.0f; });
    CHECK(!of(make("w", dtype::f16, {1, 2}, std::vector<std::uint16_t>{0x3c00, 0x7c00})));
    CHECK(!of(make("w", dtype::bf16, {1, 2}, std::vector<std::uint16_t>{0x3c00, 0x7fc0})));
}

TEST_CASE("a message names the element and its byte") {
    std::vector<float> v(15, 1.0f);
    v[8] = -INFINITY;
    owned scale = make_floats("x.weight_scale", {3, 5}, v);
    st::tensor s = scale.view();
    s.offset = 1000;
    const owned w = make("x.weight", dtype::f8_e4m3, {3, 80}, std::vector<char>(240));
    const auto layer = layouts::fp8::unpack(w.view(), s, nullptr, nibble::granularity{1, 16});
    REQUIRE(!layer);
    CHECK(layer.failure().message == "fp8: tensor \"x.weight_scale\" is F32 [3, 5]: element [1, 3] is NaN or Inf");
    CHECK(layer.failure().offset == 1032);
    CHECK(layer.failure().code == nibble::errc::malformed);
    const auto narrow = layouts::fp8::unpack(w.view(), s, nullptr, nibble::granularity{1, 20});
    REQUIRE(!narrow);
    CHECK(narrow.failure().message == "fp8: tensor \"x.weight_scale\" is F32 [3, 5]: expected [3, 4]");
    CHECK(narrow.failure().code == nibble::errc::shape_mismatch);
}

TEST_CASE("layers without elements") {
    const owned w = make("w", dtype::f8_e4m3, {0, 64}, std::vector<char>{}), s = make_floats("s", {0, 1}, {}),
                one = make_floats("s", {}, {1.0f});
    CHECK(layouts::fp8::unpack(w.view(), s.view(), nullptr, nibble::granularity{1, 0}).value().weight.cols() == 64);
    CHECK(layouts::fp8::unpack(w.view(), one.view(), nullptr).value().weight.rows() == 0);
    const owned wide = make("w", dtype::f8_e4m3, {5, 0}, std::vector<char>{});
    CHECK(layouts::fp8::unpack(wide.view(), one.view(), nullptr).value().weight.rows() == 5);
    const owned huge = make("w", dtype::f8_e4m3, {std::uint64_t{1} << 40, 0}, std::vector<char>{});
    CHECK(!layouts::fp8::unpack(huge.view(), one.view(), nullptr));
    const owned blocks = make("b", dtype::u8, {0x7fffffff, 0x7fffffff, 0, 16}, std::vector<char>{}),
                exponents = make("e", dtype::u8, {0x7fffffff, 0x7fffffff, 0}, std::vector<char>{});
    CHECK(
        !layouts::mxfp4::unpack(blocks.view(), exponents.view(), nullptr, 7));  // two thousand million rows of nothing
}

TEST_CASE("a layer that is put together wrong") {
    linear layer{nibble::qmatrix_builder(16, 8, nibble::int4::format, nibble::scales::f16, nibble::offset_kind::none,
                                         nibble::per_group{8})
                     .finish(),
                 {},
                 {}};
    CHECK(nibble::io::check_linear(layer));
    layer.permutation = {0, 1, 2, 3, 4, 5, 6};
    CHECK(nibble::io::check_linear(layer).code() == nibble::errc::shape_mismatch);
    layer.permutation = {0, 1, 2, 3, 4, 5, 6, 8};
    CHECK(nibble::io::check_linear(layer).code() == nibble::errc::invalid_argument);
    CHECK_THROWS(nibble::io::multiply(layer, Eigen::MatrixXf::Ones(8, 1)));
    layer.permutation = {0, 1, 2, 3, 4, 5, 6, 6};
    CHECK(nibble::io::check_linear(layer).code() == nibble::errc::invalid_argument);
    layer.permutation = {7, 6, 5, 4, 3, 2, 1, 0};
    CHECK(nibble::io::check_linear(layer));
    CHECK_THROWS(nibble::io::multiply(layer, Eigen::MatrixXf::Ones(9, 1)));
    layer.bias.assign(15, 0.0f);
    CHECK(nibble::io::check_linear(layer).code() == nibble::errc::shape_mismatch);
    layer.bias.assign(16, 2.0f);
    CHECK(nibble::io::multiply(layer, Eigen::MatrixXf::Ones(8, 1)) == Eigen::MatrixXf::Constant(16, 1, 2.0f));
}
