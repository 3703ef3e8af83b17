// A quantized cache of the keys and values of one attention head (KIVI: Liu et al. 2024, arXiv:2402.02750).
//
//     nibble::kv_cache cache(128);                      // channels of a head; 2 bits, groups of 32, 128 recent tokens as floats
//     cache.append(k, v);                               // 128 x new tokens each, a column per token: O(new tokens)
//     Eigen::MatrixXf out = cache.attend(q, 0.088f);    // q: 128 x heads that share the cache
//
// Keys have outlier channels, so their groups run along tokens of one channel; those of values along channels of one token.
//
//   keys     chunks of R tokens, each a qmatrix of channels x R; then a residual of 0 .. R - 1 tokens as floats
//   values   chunks of R tokens, each a qmatrix of R x channels; then the last R tokens as floats
//
// Every token is quantized once: keys when a chunk is complete, values when a token leaves the residual. The state does not
// depend on how tokens were split into calls. Scores and outputs are products with the chunks as they are (W^T Y of gemm) and sums in
// double over the residual: the same bits on every machine.
#pragma once

#include "../dequantize.hpp"
#include "../gemm.hpp"
#include "../quantize.hpp"
#include "../rows.hpp"

namespace nibble::inline NIBBLE_ABI {

struct kv_cache_options {
    quantize_plan keys = make_plan(int2_min_g32::get());
    quantize_plan values = make_plan(int2_min_g32::get());
    /// R: recent tokens that stay floats, and tokens of a chunk. A multiple of the key's group.
    index residual = 128;
    /// Key groups along the channels of a token, as those of values (int8 per token, the standard of servers).
    bool keys_per_token = false;
};

/// Numbers that append() has written since the cache was made.
struct kv_cache_work {
    index copied = 0;     ///< floats to a residual
    index quantized = 0;  ///< floats to codes
};

namespace detail {

NIBBLE_FP_BEGIN

/// e^x for x <= 0, within 1e-15 of itself; 0 below 2^-1022.
[[nodiscard]] inline double exp_negative(double x) noexcept {
    if (!(x > -708.0)) return 0.0;
    const int k = static_cast<int>(x * 1.4426950408889634 - 0.5);
    const double n = static_cast<double>(k);
    const double r = x - n * 0.6931471803691238 - n * 1.9082149292705877e-10;
    double e = 1.0;
    for (int i = 13; i > 0; --i) e = 1.0 + e * (r / static_cast<double>(i));
    return e * std::bit_cast<double>(static_cast<std::uint64_t>(k + 1023) << 52);
}

/// s[i] becomes exp(scale * (s[i] - largest)) over the sum of all.
NIBBLE_NOINLINE inline void softmax(float* s, index n, float scale) noexcept {
    double largest = -std::numeric_limits<double>::infinity(), sum = 0.0;
    for (index i = 0; i < n; ++i) {
        const double v = static_cast<double>(scale) * static_cast<double>(s[i]);  // exact
        largest = v > largest ? v : largest;
    }
    for (index i = 0; i < n; ++i) sum += exp_negative(static_cast<double>(scale) * static_cast<double>(s[i]) - largest);
    const double inv = 1.0 / sum;
    for (index i = 0; i < n; ++i) s[i] = static_cast<float>(exp_negative(static_cast<double>(scale) * static_cast<double>(s[i]) - largest) * inv);
}

/// to[i] += a * from[i]
NIBBLE_NOINLINE inline void add_multiple(const float* from, index n, float a, double* to) noexcept {
    for (index i = 0; i < n; ++i) to[i] += static_cast<double>(a) * static_cast<double>(from[i]);
}

NIBBLE_NOINLINE inline void add_rounded(const double* from, index n, float* to) noexcept {
    for (index i = 0; i < n; ++i) to[i] = static_cast<float>(static_cast<double>(to[i]) + from[i]);
}

NIBBLE_FP_END

}  // namespace detail

/// Keys and values of one head (or of all heads that share them). It moves, but does not copy.
class kv_cache {
    using matrix = Eigen::Ref<const Eigen::MatrixXf>;

public:
    /// Throws errc::invalid_argument for fewer than one channel or a residual that the key's group does not divide,
    /// errc::unsupported for scales that are not those of groups of one row.
    explicit kv_cache(index channels, kv_cache_options options = {}) : channels_(channels), options_(std::move(options)) {
        const index r = options_.residual;
        if (channels < 1 || r < 1)
            detail::fail(errc::invalid_argument, "kv_cache: " + std::to_string(channels) + " channels and a residual of " + std::to_string(r) + " tokens");
        for (const quantize_plan* p : {&options_.keys, &options_.values})
            if (p->group.rows != 1 || p->scale.storage == scale_storage::double_quantized || p->scale.storage == scale_storage::e4m3_f32)
                detail::fail(errc::unsupported, "kv_cache: " + p->name + " has scales that look beyond a group of one row");
        const index g = options_.keys.group.cols;
        if (!options_.keys_per_token && g != 0 && r % g != 0)
            detail::fail(errc::invalid_argument, "kv_cache: a residual of " + std::to_string(r) + " tokens is no multiple of the key's group of " + std::to_string(g));
        recent_keys_.setZero(r, channels);
        recent_values_.setZero(channels, r);
    }
    kv_cache(kv_cache&&) noexcept = default;
    kv_cache& operator=(kv_cache&&) noexcept = default;
    kv_cache(const kv_cache&) = delete;
    kv_cache& operator=(const kv_cache&) = delete;

    /// Appends tokens: keys and values are channels x tokens. Throws errc::shape_mismatch, errc::non_finite with the index;
    /// nothing is appended then.
    void append(const matrix& keys, const matrix& values) {
        if (keys.rows() != channels_ || values.rows() != channels_ || keys.cols() != values.cols())
            detail::fail(errc::shape_mismatch, "kv_cache: keys are " + detail::shape_text(keys.rows(), keys.cols()) + ", values are " +
                                                   detail::shape_text(values.rows(), values.cols()) + ", of " + std::to_string(channels_) + " channels");
        check(keys, "keys");
        check(values, "values");
        for (index t = 0; t < keys.cols(); ++t) {
            if (tokens_ >= options_.residual) retire_value(tokens_ % options_.residual);
            recent_values_.col(tokens_ % options_.residual) = values.col(t);
            recent_keys_.row(tokens_ % options_.residual) = keys.col(t).transpose();
            work_.copied += 2 * channels_;
            if (++tokens_ % options_.residual == 0) retire_keys();
        }
    }

    /// Forgets the oldest tokens, whole chunks of `residual` of them, for a sliding window. Throws errc::invalid_argument
    /// for other numbers, or for tokens that are not quantized yet.
    void forget(index tokens) {
        const index n = tokens / options_.residual;
        if (tokens < 0 || tokens % options_.residual != 0 || n > static_cast<index>(values_.size()))
            detail::fail(errc::invalid_argument, "kv_cache: forgetting " + std::to_string(tokens) + " of " + std::to_string(tokens_) + " tokens, of which " +
                                                     std::to_string(static_cast<index>(values_.size()) * options_.residual) + " can be, in chunks of " +
                                                     std::to_string(options_.residual));
        keys_.erase(keys_.begin(), keys_.begin() + n);
        values_.erase(values_.begin(), values_.begin() + n);
        tokens_ -= tokens;
    }

    /// K^T q, tokens x columns of q (channels x heads). Throws errc::shape_mismatch.
    [[nodiscard]] Eigen::MatrixXf scores(const matrix& q, const gemm_options& options = {}) const {
        expect(q.rows(), channels_, "queries", q);
        Eigen::MatrixXf s(tokens_, q.cols());
        const index r = options_.residual;
        for (index i = 0; i < static_cast<index>(keys_.size()); ++i) {
            const qmatrix& chunk = keys_[static_cast<std::size_t>(i)];
            if (options_.keys_per_token) gemm(chunk, q, s.middleRows(i * r, r), options);
            else gemm(chunk.transpose(), q, s.middleRows(i * r, r), options);
        }
        const index recent = tokens_ % r;
        const detail::fp_environment environment;
        std::vector<double> sums;
        for (index h = 0; h < q.cols() && recent > 0; ++h) {
            sums.assign(static_cast<std::size_t>(recent), 0.0);
            for (index c = 0; c < channels_; ++c) detail::add_multiple(recent_keys_.col(c).data(), recent, q(c, h), sums.data());
            float* to = s.col(h).data() + tokens_ - recent;
            std::fill_n(to, recent, 0.0f);
            detail::add_rounded(sums.data(), recent, to);
        }
        return s;
    }
    /// V p, channels x columns of p (tokens x heads). Throws errc::shape_mismatch.
    [[nodiscard]] Eigen::MatrixXf weighted_values(const matrix& p, const gemm_options& options = {}) const {
        expect(p.rows(), tokens_, "weights", p);
        Eigen::MatrixXf out = Eigen::MatrixXf::Zero(channels_, p.cols());
        const index r = options_.residual, full = static_cast<index>(values_.size());
        gemm_options add = options;
        add.accumulate = true;
        for (index i = 0; i < full; ++i) gemm(values_[static_cast<std::size_t>(i)].transpose(), p.middleRows(i * r, r), out, add);
        const index leaving = leaving_values();
        if (leaving > 0) {
            Eigen::MatrixXf of_chunk = Eigen::MatrixXf::Zero(r, p.cols());  // rows to come have the scale 0
            of_chunk.topRows(leaving) = p.middleRows(full * r, leaving);
            gemm(open_->peek().transpose(), of_chunk, out, add);
        }
        const detail::fp_environment environment;
        std::vector<double> sums;
        for (index h = 0; h < p.cols(); ++h) {
            sums.assign(static_cast<std::size_t>(channels_), 0.0);
            for (index t = full * r + leaving; t < tokens_; ++t)  // forget() takes whole rings, so slots stay
                detail::add_multiple(recent_values_.col(t % r).data(), channels_, p(t, h), sums.data());
            detail::add_rounded(sums.data(), channels_, out.col(h).data());
        }
        return out;
    }
    /// V softmax(scale K^T q), channels x columns of q: every query sees all tokens. (For masks use scores() and weighted_values().)
    /// An empty cache gives zeros. Throws errc::shape_mismatch.
    [[nodiscard]] Eigen::MatrixXf attend(const matrix& q, float scale, const gemm_options& options = {}) const {
        Eigen::MatrixXf p = scores(q, options);
        {
            const detail::fp_environment environment;
            for (index h = 0; h < p.cols(); ++h) detail::softmax(p.col(h).data(), tokens_, scale);
        }
        return weighted_values(p, options);
    }

    [[nodiscard]] index channels() const noexcept { return channels_; }
    [[nodiscard]] index tokens() const noexcept { return tokens_; }
    /// Tokens whose keys, and those whose values, are quantized.
    [[nodiscard]] index quantized_keys() const noexcept { return static_cast<index>(keys_.size()) * options_.residual; }
    [[nodiscard]] index quantized_values() const noexcept { return (std::max)(index{0}, tokens_ - options_.residual); }
    [[nodiscard]] const kv_cache_work& work() const noexcept { return work_; }
    /// Bytes held, residuals included.
    [[nodiscard]] std::size_t memory_bytes() const noexcept {
        std::size_t sum = 4 * static_cast<std::size_t>(recent_keys_.size() + recent_values_.size());
        for (const auto* chunks : {&keys_, &values_})
            for (const qmatrix& m : *chunks) sum += m.memory_bytes();
        return sum + (open_ ? static_cast<std::size_t>(open_->layout().size) : 0);
    }

    /// What the cache stands for: channels x tokens, decoded.
    [[nodiscard]] Eigen::MatrixXf decoded_keys() const {
        Eigen::MatrixXf out(channels_, tokens_);
        const index r = options_.residual;
        for (std::size_t i = 0; i < keys_.size(); ++i) {
            auto to = out.middleCols(static_cast<index>(i) * r, r);
            if (options_.keys_per_token) to = dequantize(keys_[i]).transpose();
            else dequantize(keys_[i], to);
        }
        out.rightCols(tokens_ % r) = recent_keys_.topRows(tokens_ % r).transpose();
        return out;
    }
    [[nodiscard]] Eigen::MatrixXf decoded_values() const {
        Eigen::MatrixXf out(channels_, tokens_);
        const index r = options_.residual, full = static_cast<index>(values_.size()), leaving = leaving_values();
        for (index i = 0; i < full; ++i) out.middleCols(i * r, r) = dequantize(values_[static_cast<std::size_t>(i)]).transpose();
        if (leaving > 0) out.middleCols(full * r, leaving) = dequantize(open_->peek()).topRows(leaving).transpose();
        for (index t = full * r + leaving; t < tokens_; ++t) out.col(t) = recent_values_.col(t % r);
        return out;
    }

private:
    static void check(const matrix& m, const char* what) {
        for (index t = 0; t < m.cols(); ++t) {
            const index bad = detail::find_non_finite(m.col(t).data(), m.rows());
            if (bad >= 0)
                detail::fail(errc::non_finite, std::string("kv_cache: ") + what + "(" + std::to_string(bad) + ", " + std::to_string(t) + ") is " +
                                                   detail::non_finite_name(m.col(t).data() + bad));
        }
    }
    static void expect(index rows, index wanted, const char* what, const matrix& m) {
        if (rows != wanted)
            detail::fail(errc::shape_mismatch, std::string("kv_cache: ") + what + " are " + detail::shape_text(m.rows(), m.cols()) + ", expected " +
                                                   std::to_string(wanted) + " rows");
    }
    /// Rows of the chunk of values that is being filled.
    [[nodiscard]] index leaving_values() const noexcept { return quantized_values() - static_cast<index>(values_.size()) * options_.residual; }

    void retire_keys() {
        if (options_.keys_per_token) keys_.push_back(quantize(recent_keys_, options_.keys));
        else keys_.push_back(quantize(recent_keys_.transpose(), options_.keys));
        work_.quantized += recent_keys_.size();
    }
    /// Quantizes the oldest value, which lies in that slot. tokens_ still is without the one that will take its place.
    void retire_value(index slot) {
        const qmatrix row = quantize(recent_values_.col(slot).transpose(), options_.values);
        const index n = slot;  // chunks have as many rows as there are slots
        if (!open_)
            open_.emplace(options_.residual, channels_, options_.values.format, options_.values.scale, options_.values.rule.offset, options_.values.group,
                          options_.values.name);
        codes_.resize(static_cast<std::size_t>(channels_));
        detail::copy_row(row, 0, *open_, n, codes_.data());
        work_.quantized += channels_;
        if (n + 1 == options_.residual) {
            values_.push_back(std::move(*open_).finish());
            open_.reset();
        }
    }

    index channels_ = 0, tokens_ = 0;
    kv_cache_options options_;
    std::vector<qmatrix> keys_, values_;
    std::optional<qmatrix_builder> open_;
    Eigen::MatrixXf recent_keys_;    // slots x channels, so that sums run along tokens
    Eigen::MatrixXf recent_values_;  // channels x slots, a ring
    std::vector<std::uint8_t> codes_;
    kv_cache_work work_;
};

}  // namespace nibble
