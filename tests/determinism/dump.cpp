// Prints a hash of everything that must not depend on the compiler, its options, the CPU, or the floating-point
// environment of the host program: codes and scales of every recipe, of importance searches and of other quantizers,
// decoded weights, accessors, and products of every class. Two builds or runs of this program print the same, or the
// numerics contract is broken; tests/determinism/CMakeLists.txt says which builds and runs are compared.
//
//   dump [flush] [up | down | zero] [trap]      flush: FTZ and DAZ; a rounding mode; floating-point exceptions trap
//
// expected.txt holds what it printed when the bytes were last meant to change, so that other machines and other days
// are compared, too.
//
// One line a case: name, FNV-1a-64 of the bytes. The level is told on stderr, for it may differ.
#include <nibble/nibble.hpp>

#include <bit>
#include <cfenv>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace {

using nibble::compute;
using nibble::qmatrix;
using Index = nibble::index;

// --- data: the generators of the format study 0.1, on integers until the last step, which is exact
// ---------------------

/// Values of a 12-bit grid: S / 524288 with |S| < 2^21.
struct gaussian {
    std::uint32_t state;
    std::int32_t next() {
        std::int32_t sum = 0;
        for (int i = 0; i < 4; ++i) {
            state = state * 1664525u + 1013904223u;
            sum += static_cast<std::int32_t>(state >> 12) - 524288;
        }
        return sum;
    }
};

/// sum * 2^exponent from its bits: no arithmetic that an option could change. |sum| < 2^24; may be subnormal.
float make_float(std::int32_t sum, int exponent) {
    if (sum == 0) return 0.0f;
    const std::uint32_t sign = sum < 0 ? 0x80000000u : 0u;
    std::uint32_t m = sum < 0 ? std::uint32_t{0} - static_cast<std::uint32_t>(sum) : static_cast<std::uint32_t>(sum);
    int e = exponent + 23;
    while ((m & 0x800000u) == 0) {
        m <<= 1;
        --e;
    }
    if (e + 127 >= 255) return std::bit_cast<float>(sign | 0x7f7fffffu);
    if (e + 127 > 0) return std::bit_cast<float>(sign | static_cast<std::uint32_t>(e + 127) << 23 | (m & 0x7fffffu));
    const int shift = -126 - e;
    return std::bit_cast<float>(sign | (shift > 23 ? 0u : m >> shift));
}

enum class kind { g1, g2, outliers, wide, subnormal, huge, special };

/// rows x cols, row-major.
std::vector<float> make_data(kind what, Index rows, Index cols, std::uint32_t seed) {
    std::vector<float> x;
    gaussian g{seed};
    for (Index i = 0; i < rows * cols; ++i) {
        const std::int32_t s = g.next();
        switch (what) {
            case kind::g1: x.push_back(make_float(static_cast<std::int32_t>((i * 37 + 11) % 101) - 50, -5)); break;
            case kind::g2: x.push_back(make_float(s, -19)); break;
            case kind::outliers: x.push_back(make_float(s, i % 97 == 5 ? -13 : -19)); break;
            case kind::wide: x.push_back(make_float(s, -19 - static_cast<int>(g.state >> 27))); break;
            case kind::subnormal: x.push_back(make_float(s, -19 - 128 - static_cast<int>(i % 3))); break;
            case kind::huge: x.push_back(make_float(s, -19 + 122)); break;
            case kind::special: {  // zero rows, constants, ties on grids of halves, signed zeros, one value among zeros
                const Index row = i / cols;
                const Index col = i % cols;
                // Chosen as bits: to -ffast-math one zero is as good as the other.
                const auto bits = [](float v) { return std::bit_cast<std::uint32_t>(v); };
                const std::uint32_t tie = bits(make_float(static_cast<std::int32_t>(col % 31) - 15, -1));
                const std::uint32_t lone = col == cols / 2 ? bits(-3.0f) : 0x80000000u;
                x.push_back(std::bit_cast<float>(row % 5 == 0   ? 0u
                                                 : row % 5 == 1 ? bits(0.7f)
                                                 : row % 5 == 2 ? tie
                                                 : row % 5 == 3 ? lone
                                                                : bits(make_float(s & 0xffff, -17))));
                break;
            }
        }
    }
    return x;
}

constexpr kind kinds[] = {kind::g1, kind::g2, kind::outliers, kind::wide, kind::subnormal, kind::huge, kind::special};
constexpr const char* kind_names[] = {"g1", "g2", "outliers", "wide", "subnormal", "huge", "special"};

// --- hashes --------------------------------------------------------------------------------------------------------

class hash {
public:
    void add(const void* bytes, std::size_t count) {
        const auto* p = static_cast<const unsigned char*>(bytes);
        for (std::size_t i = 0; i < count; ++i) value_ = (value_ ^ p[i]) * 0x100000001b3u;
    }
    void add(const std::vector<float>& x) { add(x.data(), x.size() * sizeof(float)); }
    [[nodiscard]] unsigned long long value() const { return value_; }

private:
    std::uint64_t value_ = 0xcbf29ce484222325u;
};

int lines = 0;

void print(const std::string& name, const hash& h) {
    std::printf("%-40s %016llx\n", name.c_str(), h.value());
    ++lines;
}

// --- the environment of a hostile host program -----------------------------------------------------------------------

bool hostile = false;

unsigned control_register() {
#if defined(__SSE2__)
    return _mm_getcsr() & 0xffc0u;  // without the sticky flags
#elif defined(__aarch64__)
    std::uint64_t fpcr;
    __asm__ volatile("mrs %0, fpcr" : "=r"(fpcr));
    return static_cast<unsigned>(fpcr);
#else
    return static_cast<unsigned>(std::fegetround());
#endif
}

void make_hostile(int argc, char** argv) {
    for (int i = 1; i < argc; ++i) {
        const std::string word = argv[i];
        hostile = true;
        if (word == "up")
            std::fesetround(FE_UPWARD);
        else if (word == "down")
            std::fesetround(FE_DOWNWARD);
        else if (word == "zero")
            std::fesetround(FE_TOWARDZERO);
        else if (word == "flush") {
#if defined(__SSE2__)
            _mm_setcsr(_mm_getcsr() | 0x8040u);
#elif defined(__aarch64__)
            std::uint64_t fpcr;
            __asm__ volatile("mrs %0, fpcr" : "=r"(fpcr));
            fpcr |= 1u << 24 | 1u << 19;  // FZ, FZ16
            fpcr |= 1u << 26 | 1u << 25;  // and the other fp16 (no Inf), one NaN for all
            __asm__ volatile("msr fpcr, %0" : : "r"(fpcr));
#endif
        } else if (word == "trap") {
#if defined(__SSE2__)
            _mm_setcsr(_mm_getcsr() & ~0x1f80u);  // every exception, also inexact
#endif
        } else {
            std::fprintf(stderr, "dump: what is '%s'?\n", word.c_str());
            std::exit(2);
        }
    }
}

unsigned expected_register = 0;

void check_restored(const std::string& after) {
    if (control_register() == expected_register) return;
    std::printf("the control register has changed after %s\n", after.c_str());
    std::exit(1);
}

// --- what is hashed
// ----------------------------------------------------------------------------------------------------

constexpr Index rows = 20;
constexpr Index cols = 308;  // one super-block of 256 and a ragged rest
constexpr Index columns = 7;

constexpr compute classes[] = {compute::strict_f32, compute::f32, compute::a16, compute::a8};

/// K x 7: normal, wide, subnormal, huge, with an outlier, with NaN, zero; of 2^-100 and 2^100 where the weights allow.
std::vector<float> make_activations() {
    std::vector<float> x;  // column after column
    const auto append = [&](const std::vector<float>& column) { x.insert(x.end(), column.begin(), column.end()); };
    append(make_data(kind::g2, 1, cols, 7));
    append(make_data(kind::wide, 1, cols, 8));
    append(make_data(kind::subnormal, 1, cols, 9));
    append(make_data(kind::huge, 1, cols, 10));
    std::vector<float> outlier = make_data(kind::g2, 1, cols, 11);
    outlier[100] = 0x1p21f;
    append(outlier);
    std::vector<float> bad = make_data(kind::g2, 1, cols, 12);
    bad[cols - 1] = std::bit_cast<float>(0xffc00123u);
    append(bad);
    append(std::vector<float>(static_cast<std::size_t>(cols), 0.0f));
    return x;
}

/// Codes, stored scales and offsets, and what they mean: independent of how a matrix lies in memory.
void add_matrix(hash& h, const qmatrix& w) {
    for (Index n = 0; n < w.rows(); ++n) {
        for (Index k = 0; k < w.cols(); ++k) {
            const auto code = static_cast<std::uint16_t>(w.code(n, k));
            h.add(&code, sizeof code);
        }
        for (Index g = 0; g < w.groups(); ++g) {
            const std::uint32_t stored[2] = {w.stored_scale(n, g), w.stored_offset(n, g)};
            h.add(stored, sizeof stored);
            const float decoded[2] = {w.scale(n, g), w.offset(n, g)};
            h.add(decoded, sizeof decoded);
        }
    }
    const float tensor = w.tensor_scale();
    h.add(&tensor, sizeof tensor);
}

/// The code alone: the digits that printf writes into a message obey the rounding mode.
void add_error(hash& h, const nibble::error& e) {
    const nibble::errc code = e.code();
    h.add(&code, sizeof code);
}

void add_decoded(hash& h, const qmatrix& w) {
    std::vector<float> out(static_cast<std::size_t>(w.rows() * w.cols()));
    nibble::dequantize(w, nibble::row_major(out.data(), w.rows(), w.cols()));
    check_restored("dequantize");
    h.add(out);
}

void add_accessors(hash& h, const qmatrix& w) {
    std::vector<float> out(static_cast<std::size_t>(w.cols()));
    nibble::dequantize_row(w, w.rows() - 1, out.data());
    check_restored("dequantize_row");
    h.add(out);
    for (Index n = 0; n < w.rows(); n += 3)
        for (Index k = 0; k < w.cols(); k += 13) {
            const float v = w(n, k);
            h.add(&v, sizeof v);
        }
    check_restored("an accessor");
}

void add_products(hash& h, const qmatrix& w, const std::vector<float>& x) {
    std::vector<float> y(static_cast<std::size_t>(rows * columns));
    for (const compute c : classes) {
        nibble::gemm(w, nibble::column_major(x.data(), cols, columns), nibble::column_major(y.data(), rows, columns),
                     {.compute = c});
        check_restored("gemm");
        h.add(y);
    }
}

qmatrix quantize_rows(const std::vector<float>& w, const nibble::quantize_plan& plan,
                      const nibble::quantize_options& options = {}) {
    const qmatrix q = nibble::quantize(nibble::row_major(w.data(), rows, cols), plan, options);
    check_restored("quantize");
    return q;
}

/// All data of one plan into one line; that fp16 cannot hold a scale is part of the line, too.
void dump_plan(const std::string& name, const nibble::quantize_plan& plan, const std::vector<std::vector<float>>& data,
               const std::vector<float>& x, const nibble::quantize_options& options = {}) {
    hash bytes, decoded, accessors, products;
    for (std::size_t d = 0; d < data.size(); ++d) {
        try {
            const qmatrix w = quantize_rows(data[d], plan, options);
            add_matrix(bytes, w);
            add_decoded(decoded, w);
            add_accessors(accessors, w);
            if (d == 1 || d == 4 || d == 5) add_products(products, w, x);
        } catch (const nibble::error& e) {
            check_restored("an exception");
            add_error(bytes, e);
        }
    }
    print(name + " bytes", bytes);
    print(name + " decoded", decoded);
    print(name + " accessors", accessors);
    print(name + " products", products);
}

}  // namespace

int main(int argc, char** argv) {
    std::fprintf(stderr, "level %s\n", nibble::name_of(nibble::active_isa()));
    std::vector<std::vector<float>> data;
    for (const kind k : kinds) data.push_back(make_data(k, rows, cols, 1));
    const std::vector<float> x = make_activations();
    std::vector<float> importance;
    for (Index k = 0; k < cols; ++k) importance.push_back(1.0f + 0.25f * static_cast<float>(k % 7));
    std::vector<double> doubles;  // with bits below a float's
    std::vector<std::uint16_t> halves;
    for (const float v : data[1]) {
        doubles.push_back(std::bit_cast<double>(std::bit_cast<std::uint64_t>(static_cast<double>(v)) | 0x1fffffffu));
        halves.push_back(nibble::float_to_fp16(v));
    }
    std::vector<float> poisoned = data[1];
    poisoned[17] = std::bit_cast<float>(0x7fc00001u);
    poisoned[400] = std::bit_cast<float>(0x7f800000u);
    poisoned[401] = std::bit_cast<float>(0xff800000u);

    make_hostile(argc, argv);
    expected_register = control_register();

    for (const nibble::recipe& r : nibble::recipes()) {
        dump_plan(r.name, nibble::make_plan(r), data, x);
        if (r.rule.searches) {
            hash h;
            for (std::size_t d = 0; d < data.size(); ++d) {
                try {
                    add_matrix(h, quantize_rows(data[d], nibble::make_plan(r),
                                                {.scale = {}, .non_finite = {}, .importance = importance}));
                } catch (const nibble::error& e) {
                    add_error(h, e);
                }
            }
            print(std::string(r.name) + " importance", h);
        }
    }

    // Other rules, groupings and schemes.
    const nibble::mse mse_symmetric{};
    const nibble::mse mse_zero{nibble::offset_kind::zero_point, 80, 0.01f};
    const nibble::mse mse_minimum{nibble::offset_kind::minimum, 40, 0.01f};
    const nibble::percentile percentile{99.0};
    const nibble::zero_point eager{.eager = true};
    const nibble::zero_point zero{};
    const nibble::absmax absmax{};
    const nibble::absmean absmean{};
    const nibble::float_zero float_zero{};
    const nibble::min_offset min_offset{};
    const nibble::mx mx_even{nibble::mx_rounding::even};
    const nibble::mx mx_ceil{nibble::mx_rounding::ceil};
    const nibble::mx mx_rceil{nibble::mx_rounding::rceil};
    const nibble::format_handle book =
        nibble::make_codebook("book", {-1.0f, -0.7f, -0.5f, -0.4f, -0.3f, -0.2f, -0.1f, 0.0f, 1e-40f, 0.15f, 0.25f,
                                       0.35f, 0.45f, 0.55f, 0.75f, 0.95f});
    check_restored("make_codebook");
    using nibble::format_handle;
    using nibble::make_plan;
    namespace s = nibble::scales;
    const nibble::granularity g31 = nibble::per_group{31};
    struct other {
        const char* name;
        nibble::quantize_plan plan;
    };
    const other others[] = {
        {"int4 mse g31", make_plan(format_handle(nibble::int4::format), mse_symmetric, g31)},
        {"int3 mse zero g31", make_plan(format_handle(nibble::int3::format), mse_zero, g31)},
        {"int2 mse minimum g31 f32", make_plan(format_handle(nibble::int2::format), mse_minimum, g31, s::f32)},
        {"nf4 mse g31", make_plan(format_handle(nibble::nf4::format), mse_symmetric, g31)},
        {"int8 percentile", make_plan(format_handle(nibble::int8::format), percentile, nibble::per_channel{})},
        {"int8 eager", make_plan(format_handle(nibble::int8::format), eager, nibble::per_channel{})},
        {"int4 zero tiles", make_plan(format_handle(nibble::int4::format), zero, nibble::per_block{5, 7})},
        {"int6 float zero tensor", make_plan(format_handle(nibble::int6::format), float_zero, nibble::per_tensor{})},
        {"int5 minimum bf16", make_plan(format_handle(nibble::int5::format), min_offset, g31, s::bf16)},
        {"int4 minimum two-level",
         make_plan(format_handle(nibble::int4::format), min_offset, g31, s::two_level(6, false, 4))},
        {"fp8 mse tiles", make_plan(format_handle(nibble::fp8_e4m3::format), mse_symmetric, nibble::per_block{16, 16})},
        {"binary absmean tiles", make_plan(format_handle(nibble::binary::format), absmean, nibble::per_block{3, 64})},
        {"int8 double-quantized", make_plan(format_handle(nibble::int8::format), absmax, g31, s::double_quantized)},
        {"int4 e4m3", make_plan(format_handle(nibble::int4::format), absmax, g31, s::e4m3_f32)},
        {"mx even", make_plan(format_handle(nibble::fp6_e2m3::format), mx_even, g31, s::e8m0)},
        {"mx ceil", make_plan(format_handle(nibble::fp4_e2m1::format), mx_ceil, g31, s::e8m0)},
        {"mx rceil", make_plan(format_handle(nibble::fp8_e5m2::format), mx_rceil, g31, s::e8m0)},
        {"codebook", make_plan(book, absmax, g31)},
    };
    for (const other& o : others) dump_plan(o.name, o.plan, data, x);

    // Other scalars, saturated weights, column by column.
    hash h;
    const nibble::quantize_plan int8 = nibble::make_plan(*nibble::find_recipe("int8_per_channel"));
    add_matrix(h, nibble::quantize({doubles.data(), nibble::scalar_type::f64, rows, cols, cols, 1}, int8));
    add_matrix(h, nibble::quantize({halves.data(), nibble::scalar_type::f16, rows, cols, cols, 1}, int8));
    add_matrix(h, nibble::quantize({halves.data(), nibble::scalar_type::bf16, rows, cols, cols, 1}, int8));
    add_matrix(
        h, quantize_rows(poisoned, int8, {.scale = {}, .non_finite = nibble::non_finite::saturate, .importance = {}}));
    check_restored("quantize");
    print("other scalars", h);
    hash columns_hash;
    for (const char* name : {"int4_zero_g128", "q4_k", "nf4_double", "int4_hqq_g64"}) {
        nibble::column_quantizer q(rows, cols, nibble::make_plan(*nibble::find_recipe(name)));
        q.choose_all(nibble::row_major(data[1].data(), rows, cols));
        std::vector<float> decoded(static_cast<std::size_t>(rows));
        for (Index k = 0; k < cols; ++k) {
            q.quantize(k, data[1].data() + k, cols, decoded.data(), nullptr);
            columns_hash.add(decoded);
        }
        add_matrix(columns_hash, std::move(q).finish());
        check_restored("column_quantizer");
    }
    print("column by column", columns_hash);

    // Floats of every exponent through the activation functions.
    std::vector<float> all;
    for (std::uint64_t u = 0; u < std::uint64_t{1} << 32; u += 49999) all.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(u)));
    for (std::uint32_t i = 0; i < 20000; ++i)  // -0.5 to -128
        all.push_back(std::bit_cast<float>(0xbf000000u + i * 3355u));
    all.resize(all.size() / 16 * 16);
    for (const nibble::activation f :
         {nibble::activation::relu, nibble::activation::gelu_erf, nibble::activation::gelu_tanh, nibble::activation::silu}) {
        std::vector<float> y(all.size());
        nibble::apply(f, all.data(), y.data(), static_cast<Index>(all.size()));
        check_restored("apply");
        hash activated;
        activated.add(y);
        print(std::string("activation ") + nibble::name_of(f), activated);
    }

    if (!hostile && lines < 250) return 1;
    return 0;
}
