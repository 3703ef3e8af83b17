// Codebooks: 4-bit codes that index 16 arbitrary values.
//
//   nf4      quantiles of N(0,1), exact zero (QLoRA, Dettmers et al. 2023; the table bitsandbytes ships)
//   fp4      bitsandbytes' own FP4: {0, 1/192, 1/6, 1/4, 1/3, 1/2, 2/3, 1} and negatives. Not E2M1.
//   af4      AbnormalFloat for blocks of 64 (Yoshida 2023, arXiv 2306.06965); bitsandbytes stores it descending
//   iq4_nl   ggml's non-linear table of small integers
//
// Encoding takes the nearest entry; the thresholds are the midpoints rounded once to float, and a value on a threshold
// goes to the lower entry (bitsandbytes). In iq4_nl ties go to the upper entry (ggml).
#pragma once

#include "../detail/fp_environment.hpp"
#include "../format.hpp"

namespace nibble::inline NIBBLE_ABI {
namespace detail {

NIBBLE_FP_BEGIN

/// Nearest entry of a sorted codebook of 16.
[[nodiscard]] inline unsigned encode_codebook(const code_format& f, float t) noexcept {
    unsigned above = 0;
    for (int i = 0; i < 15; ++i) above += t > f.thresholds[i] ? 1u : 0u;
    return f.order[above];
}

/// ggml's best_index_int8: the nearer neighbour, a tie goes to the upper one. The two distances
/// are rounded, but for this table and every float the outcome is that of the exact midpoints (a test sweeps them all).
[[nodiscard]] inline unsigned encode_iq4_nl(const code_format& f, float t) noexcept {
    const float* v = f.values;
    if (t <= v[0]) return 0;
    if (t >= v[15]) return 15;
    unsigned upper = 1;
    while (t >= v[upper]) ++upper;
    const float down = t - v[upper - 1];
    const float up = v[upper] - t;
    return down < up ? upper - 1 : upper;
}

struct codebook_order {
    std::array<std::uint8_t, 16> order{};
    std::array<float, 15> thresholds{};
};

/// Sorts a table (stable: of equal values the lower code comes first) and computes the midpoints.
[[nodiscard]] constexpr codebook_order order_codebook(const std::array<float, 16>& values) noexcept {
    codebook_order o;
    for (unsigned i = 0; i < 16; ++i) {
        unsigned at = i;
        while (at > 0 && values[o.order[at - 1]] > values[i]) {
            o.order[at] = o.order[at - 1];
            --at;
        }
        o.order[at] = static_cast<std::uint8_t>(i);
    }
    for (unsigned i = 0; i < 15; ++i) {
        const float low = values[o.order[i]];
        const float high = values[o.order[i + 1]];
        const double sum = static_cast<double>(low) + static_cast<double>(high);
        o.thresholds[i] = static_cast<float>(sum * 0.5);  // the sum is exact or far below a float's last place
        // The midpoint of adjacent floats may round onto the upper one, which must still encode to itself.
        if (o.thresholds[i] >= high && low < high) o.thresholds[i] = low;
    }
    return o;
}

/// Not inlined: the compiler must not move its arithmetic out of the fp_environment around the call.
[[nodiscard]] NIBBLE_NOINLINE inline codebook_order order_codebook_at_run_time(const std::array<float, 16>& values) noexcept {
    return order_codebook(values);
}

NIBBLE_FP_END

[[nodiscard]] constexpr code_format describe_codebook(const char* name, const char* use_when,
                                                      const std::array<float, 16>& values,
                                                      const codebook_order& order) noexcept {
    code_format f;
    f.name = name;
    f.use_when = use_when;
    f.bits = 4;
    f.decode = decode_class::table;
    f.values = values.data();
    f.min_value = values[order.order[0]];
    f.max_value = values[order.order[15]];
    f.thresholds = order.thresholds.data();
    f.order = order.order.data();
    f.encode = &encode_codebook;
    unsigned nearest = 0;
    for (unsigned i = 0; i < 15; ++i) nearest += 0.0f > order.thresholds[i] ? 1u : 0u;
    f.zero_code = order.order[nearest];
    // Absmax maps the largest magnitude to the table's largest magnitude.
    f.max_value = f.max_value > -f.min_value ? f.max_value : -f.min_value;
    return f;
}

struct nf4_table {
    static constexpr std::array<float, 16> values = {
        -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
        -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
        0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
        0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};
    static constexpr codebook_order order = order_codebook(values);
};
struct fp4_table {
    static constexpr std::array<float, 16> values = {
        0.0f, 0.0052083334885537624f, 0.6666666865348816f, 1.0f, 0.3333333432674408f, 0.5f,
        0.1666666716337204f, 0.25f, 0.0f, -0.0052083334885537624f, -0.6666666865348816f, -1.0f,
        -0.3333333432674408f, -0.5f, -0.1666666716337204f, -0.25f};
    static constexpr codebook_order order = order_codebook(values);
};
struct af4_table {
    static constexpr std::array<float, 16> values = {
        1.0f, 0.72424863f, 0.55496234f, 0.42563882f, 0.31675666f, 0.21961274f, 0.12934483f, 0.04273164f,
        0.0f, -0.04934812f, -0.14982478f, -0.25607552f, -0.3736951f, -0.51243739f, -0.69441008f, -1.0f};
    static constexpr codebook_order order = order_codebook(values);
};
struct iq4_nl_table {
    static constexpr std::array<float, 16> values = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                     1, 13, 25, 38, 53, 69, 89, 113};
    static constexpr codebook_order order = order_codebook(values);
};

}  // namespace detail

/// NormalFloat 4 (QLoRA).
struct nf4 {
    static constexpr code_format format = detail::describe_codebook(
        "nf4", "4 bits without calibration, groups of 64 and more; QLoRA checkpoints", detail::nf4_table::values,
        detail::nf4_table::order);
    [[nodiscard]] static constexpr const code_format& descriptor() noexcept { return format; }
};
/// The FP4 of bitsandbytes.
struct fp4 {
    static constexpr code_format format = detail::describe_codebook(
        "fp4", "bitsandbytes FP4 checkpoints; nf4 is better for new ones", detail::fp4_table::values,
        detail::fp4_table::order);
    [[nodiscard]] static constexpr const code_format& descriptor() noexcept { return format; }
};
/// AbnormalFloat 4.
struct af4 {
    static constexpr code_format format = detail::describe_codebook(
        "af4", "bitsandbytes AF4 checkpoints; least absolute error at groups of 64", detail::af4_table::values,
        detail::af4_table::order);
    [[nodiscard]] static constexpr const code_format& descriptor() noexcept { return format; }
};
/// ggml's IQ4_NL table.
struct iq4_nl {
    static constexpr code_format format = [] {
        code_format f = detail::describe_codebook("iq4_nl", "GGUF files; a little better than int4 at the same size",
                                                  detail::iq4_nl_table::values, detail::iq4_nl_table::order);
        f.unit = 1.0f;
        f.encode = &detail::encode_iq4_nl;
        return f;
    }();
    [[nodiscard]] static constexpr const code_format& descriptor() noexcept { return format; }
};

/// A codebook of your own, at compile time:
///     struct mine : nibble::codebook<mine> {
///         static constexpr const char* name = "mine";
///         static constexpr std::array<float, 16> table = {...};   // any order; at least one value is not zero
///     };
///     auto Wq = nibble::quantize<mine>(W);
template <class Derived>
struct codebook {
    [[nodiscard]] static const code_format& descriptor() noexcept {
        static constexpr detail::codebook_order order = detail::order_codebook(Derived::table);
        static constexpr code_format format =
            detail::describe_codebook(Derived::name, "a codebook of this program", Derived::table, order);
        static_assert(format.max_value > 0.0f, "a codebook needs a value that is not zero");
        return format;
    }
};

/// A codebook whose 16 values are known at run time (learned, or read from a file). They may stand in any order; the
/// code of a value is its position. Throws errc::non_finite or errc::invalid_argument naming the entry.
[[nodiscard]] inline format_handle make_codebook(const std::string& name, const std::array<float, 16>& values) {
    struct owned : code_format {
        std::string text;
        std::array<float, 16> table;
        detail::codebook_order sorted;
    };
    bool all_zero = true;
    for (unsigned i = 0; i < 16; ++i) {
        if (!detail::finite_in_memory(&values[i]))
            detail::fail(errc::non_finite, "make_codebook: entry " + std::to_string(i) + " of '" + name + "' is not finite");
        all_zero = all_zero && (detail::bits_of(values[i]) & 0x7fffffffu) == 0;  // on bits: DAZ makes subnormals zero
    }
    if (all_zero) detail::fail(errc::invalid_argument, "make_codebook: all entries of '" + name + "' are zero");
    const detail::fp_environment environment;  // the thresholds must not depend on the host's rounding mode
    auto book = std::make_shared<owned>();
    book->text = name;
    book->table = values;
    book->sorted = detail::order_codebook_at_run_time(values);
    static_cast<code_format&>(*book) =
        detail::describe_codebook(book->text.c_str(), "a codebook of this program", book->table, book->sorted);
    return format_handle(std::shared_ptr<const code_format>(book, book.get()));
}

}  // namespace nibble
