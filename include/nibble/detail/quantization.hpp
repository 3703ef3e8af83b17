// The run of quantize(): ranges, rules, stored scales, codes, cells.
#pragma once

#include <algorithm>
#include <vector>

#include "../executor.hpp"
#include "codec.hpp"
#include "fp_environment.hpp"
#include "row_reader.hpp"
#include "scale_writer.hpp"

namespace nibble::inline NIBBLE_ABI::detail {

NIBBLE_FP_BEGIN

/// The codes of one group: the rule's own, or the contract's.
inline void encode_group(const quantize_plan& plan, const group_view& g, group_scale s, std::uint8_t* codes) {
    if (plan.rule.encode != nullptr) {
        plan.rule.encode(plan.rule.self, g, s, codes);
        return;
    }
    const float inv = inverse(s.scale);
    for (std::size_t i = 0; i < g.x.size(); ++i)
        codes[i] = static_cast<std::uint8_t>(encode_weight(g.format, plan.rule.offset, g.x[i], inv, s.offset));
}

/// Group g of a whole row.
[[nodiscard]] inline group_view group_of_row(const layout& l, index g, std::span<const float> row,
                                             std::span<const float> importance, float row_squares, const code_format& f) noexcept {
    const auto first = static_cast<std::size_t>(l.group_begin(g));
    const auto count = static_cast<std::size_t>(l.group_end(g)) - first;
    group_view v{row.subspan(first, count), {}, f, row, l.group_begin(g), 0.0f};
    if (!importance.empty()) {
        v.importance = importance.subspan(first, count);
        v.row_sum_squares = row_squares;
    }
    return v;
}

/// What the rule proposes for a group; a searching rule also writes the codes that it found.
inline group_scale choose_group(const quantize_plan& plan, const group_view& v, std::uint8_t* codes) {
    if (plan.rule.from_range != nullptr) {
        const range r = range_of(v.x);
        group_scale s;
        plan.rule.from_range(plan.rule.self, &r.low, &r.high, 1, *plan.format, &s.scale, &s.offset);
        return s;
    }
    return plan.rule.from_values(plan.rule.self, v, codes);
}

/// A whole row, and what the rules want to know of it.
struct proposal_row {
    std::span<const float> x;
    std::span<const float> importance;  // of the columns, or empty
    float squares;                      // their sum; only with importance
    const float* low;                   // of each group
    const float* high;
};

/// What the rule proposes for the groups of a row. Codes that a search finds go to `codes`, padded_group bytes a group.
inline void propose_groups(const quantize_plan& plan, const layout& l, const proposal_row& row, float* scale, float* offset, std::uint8_t* codes) {
    const quantizer_ref& rule = plan.rule;
    if (rule.from_range != nullptr) {
        rule.from_range(rule.self, row.low, row.high, static_cast<std::size_t>(l.groups), *plan.format, scale, offset);
        return;
    }
    if (rule.from_run == nullptr) {
        for (index g = 0; g < l.groups; ++g) {
            const group_scale s = rule.from_values(rule.self, group_of_row(l, g, row.x, row.importance, row.squares, *plan.format), codes + g * l.padded_group);
            scale[g] = s.scale;
            offset[g] = s.offset;
        }
        return;
    }
    const index whole = l.cols / l.group;
    for (index g = 0; g < l.groups; g += (std::max)(index{1}, whole)) {  // then the last one, if it is smaller
        const index first = l.group_begin(g);
        const bool weighed = !row.importance.empty();
        const group_run run{row.x.data() + first, g < whole ? whole : 1, l.group_end(g) - first, weighed ? row.importance.data() + first : nullptr,
                            row.low + g, row.high + g, *plan.format, row.x, first, weighed ? row.squares : 0.0f, l.padded_group};
        rule.from_run(rule.self, run, scale + g, offset + g, codes + g * l.padded_group);
    }
}

/// The weight of a group's scale in the search for its super-scale: the sum of the weights of its elements, as the ggml
/// rules have them.
[[nodiscard]] inline float importance_sum(const group_view& v) {
    if (v.x.size() > ggml_max_group) return 0.0f;
    float w[ggml_max_group];
    if (v.format.bits == 6) {
        for (std::size_t i = 0; i < v.x.size(); ++i) w[i] = v.importance[i];
    } else {
        const float squares = super_block_squares(v);
        importance_weights(v, v.format.bits == 2 ? squares / 256.0f : 2.0f * squares / 256.0f, w);
    }
    float sum = 0.0f;
    for (std::size_t i = 0; i < v.x.size(); ++i) sum += w[i];
    return sum;
}

/// Quantizes rows. They go one by one through range, rule and scale writer to codes, while they are in the cache; 16 rows
/// of codes become the cells of a panel. Several may fill one builder, each its own whole panels and tiles of rows.
class row_quantizer {
public:
    row_quantizer(const const_view& w, const quantize_plan& plan, const quantize_options& options, const scale_scheme& scheme,
                  qmatrix_builder& builder)
        : w_(w), plan_(plan), options_(options), scheme_(scheme), builder_(builder), writer_(builder, plan, scheme),
          rows_(w, options.non_finite, builder.layout().group, plan.rule.symmetric),
          stride_(ceil_div(builder.layout().positions() * (plan.format->bits > 8 ? 2 : 1), 64) * 64 + 64),
          codes_(static_cast<std::size_t>(panel_rows * stride_)), inverse_(static_cast<std::size_t>(builder.layout().groups)) {
        if (plan.rule.describe != nullptr) plan.rule.describe(*plan.format, encoder_);
        encoder_known_ = plan.rule.describe != nullptr ||
                         (plan.rule.encode == nullptr && plan.format->decode != decode_class::wide && make_encoder(*plan.format, plan.rule.offset, encoder_));
        finds_codes_ = plan.rule.from_values != nullptr && (plan.rule.encode != nullptr || plan.rule.keeps_codes != nullptr) && builder.layout().block_rows == 1;
    }

    /// Rows [first, last), in blocks that share scales.
    NIBBLE_NOINLINE void run(index first, index last) {
        const layout& l = builder_.layout();
        if (plan_.format->decode == decode_class::wide) {
            for (index n = first; n < last; ++n) encode_wide(n);
            return;
        }
        const index block = (std::min)(l.block_rows, last - first);
        scale_.resize(static_cast<std::size_t>(block * l.groups));
        offset_.resize(scale_.size());
        if (weighs()) weight_.resize(scale_.size());
        for (index top = first; top < last; top += block) {
            const index end = (std::min)(top + block, last);
            choose(top, end, {scale_.data(), offset_.data(), weight_.empty() ? nullptr : weight_.data()});
            writer_.store(top, end - top, scale_.data(), offset_.data(), weight_.empty() ? nullptr : weight_.data(), amax_);
            encode(top, end, scale_.data(), offset_.data(), l.block_rows != 1);
        }
    }

    /// Scales and offsets of rows, [row][group]; and the sums of importance, where they are wanted.
    struct proposals {
        float* scale;
        float* offset;
        float* weight;
    };

    /// What the rule proposes for rows [first, last).
    NIBBLE_NOINLINE void choose(index first, index last, const proposals& to) {
        const layout& l = builder_.layout();
        for (index n = first; n < last && l.block_rows == 1; ++n) choose_row(n, n - first, to);
        for (index top = first; top < last && l.block_rows != 1; top += l.block_rows) choose_block(top, (std::min)(top + l.block_rows, last), first, to);
    }

    /// The codes of rows [first, last) against stored scales; `again` if other rows were read since.
    NIBBLE_NOINLINE void encode(index first, index last, const float* scale, const float* offset, bool again) {
        const index groups = builder_.layout().groups;
        for (index n = first; n < last; ++n) encode_row(n, scale + (n - first) * groups, offset + (n - first) * groups, again);
    }

    /// Stores the scales of all rows; they become what codes are chosen against. amax: of all weights.
    NIBBLE_NOINLINE void store(float* scale, float* offset, const float* weight, float amax) {
        writer_.store(0, w_.rows, scale, offset, weight, amax);
    }

    /// The largest magnitude of the rows chosen for.
    [[nodiscard]] float amax() const noexcept { return amax_; }

    /// Whether the scheme wants the sums of importance.
    [[nodiscard]] bool weighs() const noexcept { return !options_.importance.empty() && scheme_.storage == scale_storage::two_level; }

private:
    static constexpr index streamed = index{1} << 22;  // bytes of codes that would push everything else out of the caches

    [[nodiscard]] group_view view_of(std::span<const float> row, index g) const noexcept {
        return group_of_row(builder_.layout(), g, row, options_.importance, row_squares_, *plan_.format);
    }
    [[nodiscard]] std::uint8_t* codes_of(index n) noexcept { return codes_.data() + n % panel_rows * stride_; }

    /// Groups of one row: proposals for row n, which is row `at` of the block.
    void choose_row(index n, index at, const proposals& to) {
        const layout& l = builder_.layout();
        const std::span<const float> row = rows_.scan(n);
        amax_ = (std::max)(amax_, rows_.amax());
        float* scale = to.scale + at * l.groups;
        float* offset = to.offset + at * l.groups;
        if (!options_.importance.empty()) row_squares_ = sum_of_squares(row);
        propose(n, row, scale, offset);
        for (index g = 0; g < l.groups && to.weight != nullptr; ++g) to.weight[at * l.groups + g] = importance_sum(view_of(row, g));
    }

    /// What the rule proposes for row n, which was scanned last.
    void propose(index n, std::span<const float> row, float* scale, float* offset) {
        propose_groups(plan_, builder_.layout(), {row, options_.importance, row_squares_, rows_.low(), rows_.high()}, scale, offset, codes_of(n));
    }

    /// Groups that span rows [top, bottom): one proposal for each.
    void choose_block(index top, index bottom, index first, const proposals& to) {
        const layout& l = builder_.layout();
        std::vector<float> scale(inverse_.size()), offset(inverse_.size()), low, high;
        for (index n = top; n < bottom && (plan_.rule.from_range != nullptr || scheme_.storage == scale_storage::e4m3_f32); ++n) {
            rows_.scan(n);
            amax_ = (std::max)(amax_, rows_.amax());
            if (n == top) {
                low.assign(rows_.low(), rows_.low() + l.groups);
                high.assign(rows_.high(), rows_.high() + l.groups);
            }
            for (std::size_t g = 0; g < low.size(); ++g) {
                low[g] = (std::min)(low[g], rows_.low()[g]);
                high[g] = (std::max)(high[g], rows_.high()[g]);
            }
        }
        if (plan_.rule.from_range != nullptr) {
            plan_.rule.from_range(plan_.rule.self, low.data(), high.data(), low.size(), *plan_.format, scale.data(), offset.data());
        } else {
            for (index g = 0; g < l.groups; ++g) {
                const group_scale s = search_block(top, bottom, g);
                scale[static_cast<std::size_t>(g)] = s.scale;
                offset[static_cast<std::size_t>(g)] = s.offset;
            }
        }
        for (index n = top; n < bottom; ++n) {
            std::copy(scale.begin(), scale.end(), to.scale + (n - first) * l.groups);
            std::copy(offset.begin(), offset.end(), to.offset + (n - first) * l.groups);
        }
    }

    group_scale search_block(index top, index bottom, index g) {
        const layout& l = builder_.layout();
        const index width = l.group_end(g) - l.group_begin(g);
        block_.resize(static_cast<std::size_t>(checked_product(bottom - top, width)));
        load_block(w_, top, bottom - top, l.group_begin(g), width, block_.data(), width);
        for (std::size_t i = 0; i < block_.size(); ++i) {  // few enough: the scan by row names the right element
            if (finite_in_memory(&block_[i])) continue;
            const std::span<const float> row = rows_.scan(top + static_cast<index>(i) / width);
            block_[i] = row[static_cast<std::size_t>(l.group_begin(g) + static_cast<index>(i) % width)];
        }
        block_importance_.clear();
        if (!options_.importance.empty())
            for (index n = top; n < bottom; ++n)
                block_importance_.insert(block_importance_.end(), options_.importance.begin() + l.group_begin(g),
                                         options_.importance.begin() + l.group_end(g));
        std::vector<std::uint8_t> codes(block_.size());
        const group_view v{block_, block_importance_, *plan_.format, {}, l.group_begin(g), 0.0f};
        return plan_.rule.from_values(plan_.rule.self, v, codes.data());
    }

    void encode_row(index n, const float* scale, const float* offset, bool again) {
        const layout& l = builder_.layout();
        const bool search = again && finds_codes_;  // the search's codes were not kept
        const std::span<const float> row = search ? rows_.scan(n) : again ? rows_.get(n) : rows_.current();
        if (!options_.importance.empty()) row_squares_ = sum_of_squares(row);
        if (search) {
            unused_.resize(2 * inverse_.size());
            propose(n, row, unused_.data(), unused_.data() + l.groups);
        } else if (l.block_rows != 1 && plan_.rule.encode != nullptr) {
            std::fill_n(codes_of(n), stride_, std::uint8_t{0});  // where a rule leaves codes as they are
        }
        const bool final = finds_codes_ && l.groups != 0 && plan_.rule.keeps_codes != nullptr && plan_.rule.keeps_codes(plan_.rule.self, view_of(row, 0));
        if (!final) encode_groups(n, row, scale, offset);
        pack_after(n);
    }

    void encode_groups(index n, std::span<const float> row, const float* scale, const float* offset) {
        const layout& l = builder_.layout();
        if (encoder_known_) {
            const bool divides = encoder_.weight == scaled_weight::quotient;
            if (!divides) kernels_.invert(scale, l.groups, inverse_.data());
            kernels_.encode(encoder_, {row.data(), l.cols, l.group, l.padded_group, divides ? scale : inverse_.data(), offset, codes_of(n), rows_.ahead(n + 1)});
            return;
        }
        for (index g = 0; g < l.groups; ++g) encode_group(plan_, view_of(row, g), {scale[g], offset[g]}, codes_of(n) + g * l.padded_group);
    }

    void encode_wide(index n) {
        const std::span<const float> row = rows_.scan(n);
        const code_format& f = *plan_.format;
        auto* codes = reinterpret_cast<std::uint16_t*>(codes_of(n));
        if (f.encode == &encode_fp16) kernels_.encode_fp16(row.data(), builder_.layout().cols, codes);
        else if (f.encode == &encode_bf16) kernels_.encode_bf16(row.data(), builder_.layout().cols, codes);
        else for (std::size_t k = 0; k < row.size(); ++k) codes[k] = static_cast<std::uint16_t>(f.encode(f, row[k]));
        pack_after(n);
    }

    /// Writes the panel whose last row is n.
    void pack_after(index n) {
        const layout& l = builder_.layout();
        if (n + 1 == l.rows)
            for (index r = n % panel_rows + 1; r < panel_rows; ++r) std::fill_n(codes_of(r), stride_, std::uint8_t{0});
        else if (n % panel_rows != panel_rows - 1) return;
        kernels_.pack(codes_.data(), stride_, l.bits, builder_.panel(n / panel_rows), l.panel_bytes, l.scales_at >= streamed);
    }

    const const_view& w_;
    const quantize_plan& plan_;
    const quantize_options& options_;
    const scale_scheme& scheme_;
    qmatrix_builder& builder_;
    scale_writer writer_;
    row_reader rows_;
    const codec_kernels& kernels_ = active_kernels().codec;
    encoder encoder_{};
    bool encoder_known_ = false;
    bool finds_codes_ = false;          // in the search for scales, and in its place
    index stride_;                      // of 16 rows of codes by position; not a power of two, which would share cache sets
    std::vector<std::uint8_t> codes_;
    std::vector<float> inverse_;        // of the scales of a row
    std::vector<float> scale_, offset_, weight_;  // [row of the block][group]
    std::vector<float> block_, block_importance_;
    std::vector<float> unused_;         // proposals of a search for codes
    float amax_ = 0.0f;
    float row_squares_ = 0.0f;
};

NIBBLE_FP_END

/// One run of quantize(). Tasks are whole panels and whole tiles of rows; what is stored depends on the rows alone.
class quantization {
public:
    quantization(const const_view& w, const quantize_plan& plan, const quantize_options& options)
        : w_(w), plan_(plan), options_(options), scheme_(options.scale.value_or(plan.scale)),
          builder_(w.rows, w.cols, plan.format, scheme_, plan.rule.offset, plan.group, plan.name, initial_codes::unset) {}

    [[nodiscard]] qmatrix run() && {
        const bool whole_tensor = scheme_.storage == scale_storage::e4m3_f32 || scheme_.storage == scale_storage::double_quantized;
        const bool one_tile = builder_.layout().block_rows >= w_.rows && w_.rows > 1;
        if (plan_.format->decode != decode_class::wide && (whole_tensor || (one_tile && concurrency() > 1))) run_in_stages(one_tile);
        else for_rows([](row_quantizer& q, index, index first, index last) { q.run(first, last); });
        return std::move(builder_).finish();
    }

private:
    [[nodiscard]] int concurrency() const noexcept { return options_.executor != nullptr ? options_.executor->concurrency() : 1; }

    /// Calls body(quantizer, task, first, last) for shares of the rows.
    template <class Body>
    void for_rows(Body body) {
        const index block = builder_.layout().block_rows;
        const index unit = block >= w_.rows ? panel_rows : block % panel_rows == 0 ? block : block * panel_rows;
        const index units = ceil_div(w_.rows, unit);
        const index tasks = tasks_of(units);
        const auto share = [&](index task) { return (std::min)(w_.rows, (units / tasks * task + units % tasks * task / tasks) * unit); };
        const auto task = [&](index i) {
            const fp_environment environment;
            row_quantizer q(w_, plan_, options_, scheme_, builder_);
            body(q, i, share(i), share(i + 1));
        };
        if (tasks == 1) task(0);
        else options_.executor->parallel_for(tasks, task);
    }
    [[nodiscard]] index tasks_of(index units) const noexcept {
        return concurrency() == 1 ? 1 : (std::max)(index{1}, (std::min)(units, index{concurrency()} * 4));
    }

    /// All proposals, then all stored scales, then all codes: for schemes that look at the whole tensor, and for one tile
    /// of rows, whose proposals are found by one thread.
    void run_in_stages(bool one_tile) {
        const index groups = builder_.layout().groups;
        std::vector<float> scale(static_cast<std::size_t>(checked_product(w_.rows, groups))), offset(scale.size()), weight;
        std::vector<float> amax(static_cast<std::size_t>(tasks_of(w_.rows)));
        const auto choose = [&](row_quantizer& q, index task, index first, index last) {
            q.choose(first, last, {scale.data() + first * groups, offset.data() + first * groups, weight.empty() ? nullptr : weight.data() + first * groups});
            amax[static_cast<std::size_t>(task)] = q.amax();
        };
        const fp_environment environment;
        row_quantizer all(w_, plan_, options_, scheme_, builder_);
        if (all.weighs()) weight.resize(scale.size());
        if (one_tile) choose(all, 0, 0, w_.rows);
        else for_rows(choose);
        all.store(scale.data(), offset.data(), weight.empty() ? nullptr : weight.data(), *std::max_element(amax.begin(), amax.end()));
        for_rows([&](row_quantizer& q, index, index first, index last) { q.encode(first, last, scale.data() + first * groups, offset.data() + first * groups, true); });
    }

    const const_view& w_;
    const quantize_plan& plan_;
    const quantize_options& options_;
    scale_scheme scheme_;
    qmatrix_builder builder_;
};


}  // namespace nibble::detail
