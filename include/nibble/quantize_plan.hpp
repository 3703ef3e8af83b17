// What quantize() is asked to do: a plan, options, and the check of both.
#pragma once

#include <optional>

#include "executor.hpp"
#include "qmatrix.hpp"
#include "recipe.hpp"

namespace nibble::inline NIBBLE_ABI {

/// Everything that decides the bytes of a quantized matrix.
struct quantize_plan {
    format_handle format{int8::format};
    scale_scheme scale = scales::f32;
    granularity group = per_channel{};
    quantizer_ref rule;
    std::string name;
};

/// What may be said besides the format.
struct quantize_options {
    /// Another scale scheme than the format's own.
    std::optional<scale_scheme> scale{};
    /// NaN and Inf in the weights.
    nibble::non_finite non_finite = nibble::non_finite::error;
    /// One weight >= 0 per column of W (an importance matrix): searching quantizers minimize importance * error^2.
    std::span<const float> importance{};
    /// Threads, or none but the caller's. The bytes never depend on it. A rule of your own is then called by several
    /// threads at once; of several errors, any one is thrown.
    nibble::executor* executor = nullptr;
};

/// The plan of a recipe.
[[nodiscard]] inline quantize_plan make_plan(const recipe& r) {
    return {format_handle(*r.format), r.scale, r.group, r.rule, r.name};
}

/// A plan of your own: any code format (also one of make_codebook), any quantizer. `rule` must outlive the plan.
template <quantizer Q>
[[nodiscard]] quantize_plan make_plan(format_handle format, const Q& rule, granularity group,
                                      std::optional<scale_scheme> scale = std::nullopt) {
    const scale_scheme fallback = format->decode == decode_class::wide ? scales::none
                                  : group.rows == 1 && group.cols != 0 ? scales::f16
                                                                       : scales::f32;
    std::string name = format->name;
    return {std::move(format), scale.value_or(fallback), group, erase(rule), std::move(name)};
}

/// Whether `w` can be quantized so; the message says why not.
[[nodiscard]] inline status check_quantize(const const_view& w, const quantize_plan& plan, const quantize_options& options = {}) {
    const scale_scheme scheme = options.scale.value_or(plan.scale);
    if (status s = qmatrix_builder::check_combination(w.rows, w.cols, *plan.format, scheme, plan.rule.offset, plan.group); !s)
        return status(s.code(), "quantize: " + s.message().substr(s.message().find(' ') + 1));
    if (w.data == nullptr && w.rows != 0 && w.cols != 0)
        return status(errc::invalid_argument, "quantize: W is " + detail::shape_text(w.rows, w.cols) + " at a null pointer");
    if (plan.rule.from_range == nullptr && plan.rule.from_values == nullptr)
        return status(errc::invalid_argument, "quantize: the plan for " + plan.name + " has no quantizer");
    if (!options.importance.empty()) {
        if (!plan.rule.searches)
            return status(errc::unsupported, std::string("quantize: ") + plan.rule.name +
                                                 " does not search, so importance weights would be ignored; use mse or a ggml search");
        if (static_cast<index>(options.importance.size()) != w.cols)
            return status(errc::shape_mismatch, "quantize: " + std::to_string(options.importance.size()) +
                                                    " importance weights for W of " + detail::shape_text(w.rows, w.cols));
        for (std::size_t k = 0; k < options.importance.size(); ++k)
            if (!detail::finite_in_memory(&options.importance[k]) || detail::bits_of(options.importance[k]) > 0x80000000u)
                return status(errc::invalid_argument, "quantize: importance weight " + std::to_string(k) + " is " +
                                                          std::to_string(options.importance[k]) + "; it must be finite and >= 0");
    }
    return {};
}

}  // namespace nibble
