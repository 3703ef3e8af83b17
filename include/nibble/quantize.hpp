// quantize(): floats to a qmatrix.
//
// Two stages, because many formats look beyond one group. A quantizer proposes scale and offset for every group of a
// block of rows; the scale scheme stores them, which may quantize them again (K-quants, double quantization, NVFP4);
// then codes are chosen against what was stored. A block is one row, unless a 2-D group or a scheme that looks at the
// whole tensor needs more; then the weights are read twice. (column_quantizer.hpp runs the same three steps one at a time.)
#pragma once

#include "column_quantizer.hpp"
#include "detail/quantization.hpp"
#include "eigen.hpp"

namespace nibble::inline NIBBLE_ABI {

/// Quantizes a view of floats, doubles, halves or bfloat16 (doubles are rounded to float first).
/// Throws nibble::error: errc::non_finite naming the element, errc::unsupported for a combination that does not exist,
/// errc::out_of_range for a scale that its scheme cannot hold.
[[nodiscard]] NIBBLE_API qmatrix quantize(const const_view& w, const quantize_plan& plan, const quantize_options& options = {});

#if NIBBLE_DEFINE_API
NIBBLE_API qmatrix quantize(const const_view& w, const quantize_plan& plan, const quantize_options& options) {
    check_quantize(w, plan, options).or_throw();
    return detail::quantization(w, plan, options).run();
}
#endif

namespace detail {

/// The plan of quantize<F>(...).
template <class F>
[[nodiscard]] quantize_plan default_plan() {
    if constexpr (recipe_type<F>) {
        return make_plan(F::get());
    } else {
        static_assert(code_format_type<F>, "quantize<F>: F must be a code format (nibble::int4) or a recipe (nibble::q4_k)");
        if (const recipe* r = default_recipe(F::descriptor())) return make_plan(*r);
        return make_plan(format_handle(F::descriptor()), rules::absmax, per_group{64}, scales::f32);
    }
}

template <class F>
[[nodiscard]] quantize_plan plan_with(const quantizer_ref& rule, granularity group) {
    static_assert(code_format_type<F>, "quantize<F>(W, quantizer, ...): F must be a code format; a recipe has its own rule");
    quantize_plan plan = make_plan(format_handle(F::descriptor()), rules::absmax, group);
    plan.rule = rule;
    return plan;
}

[[nodiscard]] inline quantize_plan plan_of_name(std::string_view name) {
    if (const recipe* r = find_recipe(name)) return make_plan(*r);
    if (const code_format* f = find_format(name)) return make_plan(*default_recipe(*f));
    std::string known;
    for (const recipe& r : recipes()) known.append(known.empty() ? "" : " ").append(r.name);
    fail(errc::not_found, "quantize: there is no format '" + std::string(name) + "'; there are " + known);
}

}  // namespace detail

/// quantize<nf4>(W), quantize<q4_k>(W, {.importance = h}): by the format's or the recipe's own rule. W is N x K.
template <class F, class Derived>
[[nodiscard]] qmatrix quantize(const Eigen::DenseBase<Derived>& w, const quantize_options& options = {}) {
    return quantize(eigen_view<Derived>(w).get(), detail::default_plan<F>(), options);
}

/// quantize<int4>(W, absmax{}, per_group{64}): any code format with any quantizer. Scales are f16 for groups of one
/// row and f32 for whole rows, tiles and tensors, unless the options say otherwise.
template <class F, class Derived, quantizer Q>
[[nodiscard]] qmatrix quantize(const Eigen::DenseBase<Derived>& w, const Q& rule, granularity group,
                               const quantize_options& options = {}) {
    return quantize(eigen_view<Derived>(w).get(), detail::plan_with<F>(erase(rule), group), options);
}

/// quantize<int4>(W, mse{}): with the grouping of the format's own recipe.
template <class F, class Derived, quantizer Q>
[[nodiscard]] qmatrix quantize(const Eigen::DenseBase<Derived>& w, const Q& rule, const quantize_options& options = {}) {
    return quantize(eigen_view<Derived>(w).get(), detail::plan_with<F>(erase(rule), detail::default_plan<F>().group), options);
}

/// quantize<int8>(W, per_group{128}): absmax with another grouping.
template <class F, class Derived>
[[nodiscard]] qmatrix quantize(const Eigen::DenseBase<Derived>& w, granularity group, const quantize_options& options = {}) {
    return quantize(eigen_view<Derived>(w).get(), detail::plan_with<F>(erase(detail::rules::absmax), group), options);
}

// The unused parameter keeps quantize<int4>(W, ...) away: clang 14 would look for a conversion of W to DenseBase<int4>.

/// quantize(W, "q4_k"): by name. Throws errc::not_found listing the names.
template <int = 0, eigen_expression Derived>
[[nodiscard]] qmatrix quantize(const Eigen::DenseBase<Derived>& w, std::string_view name, const quantize_options& options = {}) {
    return quantize(eigen_view<Derived>(w).get(), detail::plan_of_name(name), options);
}

/// quantize(W, plan): any plan of make_plan, for formats and codebooks that are known at run time only.
template <int = 0, eigen_expression Derived>
[[nodiscard]] qmatrix quantize(const Eigen::DenseBase<Derived>& w, const quantize_plan& plan, const quantize_options& options = {}) {
    return quantize(eigen_view<Derived>(w).get(), plan, options);
}

}  // namespace nibble
