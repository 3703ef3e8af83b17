#include "subjects.hpp"

#include "../options.hpp"
#include "../report.hpp"

namespace bench::roofline {
namespace {

using nibble::index;

// The one format that has targets and no recipe.
constexpr const char* int4_per_channel = "int4_per_channel";

constexpr const char* default_names[] = {"int8_per_channel",
                                         "int8_zero_point",
                                         "int8_per_tensor",
                                         "int8_g32",
                                         "int6_g64",
                                         "int5_g64",
                                         "int4_g32",
                                         "int4_g128",
                                         int4_per_channel,
                                         "int4_zero_g128",
                                         "int4_min_g64",
                                         "int4_hqq_g64",
                                         "int3_zero_g64",
                                         "int2_zero_g32",
                                         "binary_g128",
                                         "ternary_twn",
                                         "q8_0",
                                         "q6_k",
                                         "q5_k",
                                         "q4_k",
                                         "q3_k",
                                         "q2_k",
                                         "iq4_xs",
                                         "iq4_nl",
                                         "nf4",
                                         "nf4_double",
                                         "fp4",
                                         "af4",
                                         "mxfp4",
                                         "nvfp4",
                                         "mxfp6",
                                         "mxfp6_e3m2",
                                         "fp8_per_channel",
                                         "fp8_per_tensor",
                                         "fp8_block128",
                                         "fp8_e5m2_per_channel",
                                         "fp8_e4m3fnuz_per_channel",
                                         "fp8_e5m2fnuz_per_channel",
                                         "bf16",
                                         "fp16"};

}  // namespace

subject subject_named(const std::string& name) {
    if (const nibble::recipe* r = recipe_named(name)) return {r->name, nibble::make_plan(*r)};
    if (name == int4_per_channel) {
        nibble::quantize_plan plan =
            nibble::make_plan(nibble::int4::descriptor(), nibble::detail::rules::absmax, nibble::per_channel{});
        plan.name = name;
        return {name, std::move(plan)};
    }
    throw bad_input("--format: there is no format '" + name + "'; there are " + int4_per_channel + " " +
                    known_formats());
}

std::vector<subject> default_subjects() {
    std::vector<subject> all;
    for (const char* name : default_names) all.push_back(subject_named(name));
    return all;
}

replicator::replicator(const subject& s, const row_matrix& weights)
    : plan_(s.plan), block_(nibble::quantize(weights, s.plan)) {
    const bool wide = block_.format().bits > 8;
    for (index n = 0; n < block_.rows(); ++n) {
        for (index k = 0; k < block_.cols(); ++k) {
            const unsigned code = block_.code(n, k);
            if (wide)
                codes_.push_back(static_cast<std::uint16_t>(code));
            else
                bytes_.push_back(static_cast<std::uint8_t>(code));
        }
        for (index g = 0; g < block_.groups(); ++g) {
            scales_.push_back(block_.stored_scale(n, g));
            offsets_.push_back(block_.stored_offset(n, g));
        }
    }
}

nibble::qmatrix replicator::make(index rows) const {
    const index cols = block_.cols();
    const index groups = block_.groups();
    const index have = block_.rows();
    const bool minimum = block_.offset_type() == nibble::offset_kind::minimum;
    nibble::qmatrix_builder b(rows, cols, plan_.format, plan_.scale, block_.offset_type(), plan_.group, plan_.name);
    b.set_tensor_scale(block_.tensor_scale());
    for (index n = 0; n < rows; ++n) {
        const index from = n % have;
        for (index g = 0; g < groups; ++g) {
            b.set_scale(n, g, scales_[static_cast<std::size_t>(from * groups + g)]);
            b.set_offset(n, g, offsets_[static_cast<std::size_t>(from * groups + g)]);
        }
        if (plan_.scale.storage == nibble::scale_storage::two_level) {
            for (index s = 0; s < b.layout().supers; ++s) {
                b.set_super(n, s, block_.stored_super(from, s));
                if (minimum) b.set_super(n, s, block_.stored_super(from, s, true), true);
            }
        }
        if (bytes_.empty())
            for (index k = 0; k < cols; ++k) b.set_code(n, k, codes_[static_cast<std::size_t>(from * cols + k)]);
        else
            b.set_row(n, bytes_.data() + from * cols);
    }
    // 256 scales share one at the second level, and the block has a multiple of 256.
    if (plan_.scale.storage == nibble::scale_storage::double_quantized)
        for (index s = 0; s < b.layout().supers; ++s)
            b.set_nested_absmax(s, block_.nested_absmax(s % block_.layout().supers));
    return std::move(b).finish();
}

}  // namespace bench::roofline
