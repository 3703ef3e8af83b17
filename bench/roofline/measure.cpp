#include "roofline.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <optional>
#include <random>

#include "../check.hpp"
#include "../data.hpp"
#include "interleave.hpp"
#include "native_eigen.hpp"
#include "plan.hpp"

namespace bench::roofline {
namespace {

using nibble::index;

constexpr index checked_rows = 16;        // of every product, against the reference
constexpr double limits_every = 5.0;      // seconds between two measurements of the limits
constexpr double longest_quantize = 0.5;  // seconds; where all rows take longer, a block of them is timed

template <class Work>
double timed(int times, const Work& work) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < times; ++i) work();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

class pool_executor final : public nibble::executor {
public:
    explicit pool_executor(thread_pool& pool) noexcept : pool_(pool) {}
    [[nodiscard]] int concurrency() const noexcept override { return pool_.size(); }

private:
    void run(index tasks, nibble::task_body body) override {
        pool_.parallel_for(tasks, [body](index i) { body(i); });
    }
    thread_pool& pool_;
};

// One format at the current station: its matrices, and what is known to be right.
struct weights {
    const subject& what;
    replicator maker;
    std::vector<nibble::qmatrix> copies;
    std::vector<index> rows;  // that are checked
    row_matrix decoded;
    Eigen::MatrixXd reference;  // for all columns
    std::size_t next = 0;

    const nibble::qmatrix& turn() { return copies[next++ % copies.size()]; }
};

std::string refusal(const verdict& v) {
    char text[120];
    std::snprintf(text, sizeof text, "relative error %.2e, at most %.2e is allowed", v.error, v.tolerance);
    return text;
}

// Rounding to b bits errs by up to 2^-b of the largest weight of a group, which is a few times the usual one; fp8 and
// fp6 have no more than 5 bits of precision.
double quantize_tolerance(int bits) { return (std::min)(0.9, 4.0 * std::ldexp(1.0, -(std::min)(bits, 5))); }

class measurement {
public:
    measurement(const settings& s, progress& shown) : s_(s), shown_(shown) {
        std::vector<int> counts = s.threads;
        counts.push_back(1);
        std::sort(counts.begin(), counts.end());
        counts.erase(std::unique(counts.begin(), counts.end()), counts.end());
        std::vector<thread_pool*> pools;
        for (const int threads : counts) {
            pools_[threads] = std::make_unique<thread_pool>(threads);
            executors_[threads] = std::make_unique<pool_executor>(*pools_[threads]);
            pools.push_back(pools_[threads].get());
        }
        meter_ = std::make_unique<limit_meter>(nibble::active_isa(), pools, s.limit_megabytes);
        widest_ = *std::max_element(s.batches.begin(), s.batches.end());
    }

    results run() {
        const std::vector<station> plan = plan_run(s_);
        if (plan.empty())
            throw bad_input("roofline: nothing to measure; quantize and dequantize are of residency dram");
        shown_.status("measuring the limits of this CPU");
        for (int i = 0; i < 3; ++i) meter_->measure();
        start_native();
        double left = 0.0;
        const double peak = meter_->result().f32_gflops.at(1);
        for (const station& at : plan) left += expected_seconds(at, s_, peak);
        double done = 0.0;
        const double start = shown_.elapsed();
        for (std::size_t i = 0; i < plan.size() && !was_interrupted(); ++i) {
            prepare(plan[i], i == 0 ? nullptr : &plan[i - 1]);
            const std::string place =
                std::to_string(i + 1) + "/" + std::to_string(plan.size()) + " " + describe(plan[i]);
            measure(plan[i], place);
            const double expected = expected_seconds(plan[i], s_, peak);
            done += expected;
            left -= expected;
            shown_.expect((shown_.elapsed() - start) * left / done);
            shown_.milestone("measured " + place);
        }
        out_.rows.erase(std::remove_if(out_.rows.begin(), out_.rows.end(),
                                       [](const row& r) { return r.seconds.empty() && r.wrong.empty(); }),
                        out_.rows.end());
        if (out_.rows.empty()) throw interrupted();
        out_.limits = meter_->result();
        out_.complete = !was_interrupted();
        out_.seconds = shown_.elapsed();
        return std::move(out_);
    }

private:
    void start_native() {
        if (s_.native_program.empty()) return;
        try {
            native_ = std::make_unique<native_eigen>(s_.native_program);
        } catch (const bad_input& e) {
            native_failed(e);
        }
    }
    void native_failed(const bad_input& e) {
        out_.notes.push_back(std::string(e.what()) + "; there are no rows of it");
        native_.reset();
    }

    static std::string describe(const station& at) {
        std::string text = nibble::detail::shape_text(at.shape.n, at.shape.k) + " " + name_of(at.kernel);
        if (at.m != 0) text += " M = " + std::to_string(at.m);
        if (at.kernel == kernel::product)
            text += std::string(" ") + name_of(at.residency) + ", " + std::to_string(at.threads) + " thread" +
                    (at.threads > 1 ? "s" : "");
        return text;
    }

    // --- what a station needs -------------------------------------------------------------------------------------

    void prepare(const station& at, const station* before) {
        const bool formats_differ = before == nullptr || !at.same_formats(*before);
        if (before == nullptr || at.shape.n != before->shape.n || at.shape.k != before->shape.k) {
            source_.resize(0, 0);
            x_.resize(at.shape.k, widest_);
            for (index i = 0; i < x_.size(); ++i)
                x_.data()[i] = number_at(activation_seed, static_cast<std::uint64_t>(i));
            y_.resize(at.shape.n, widest_);
        }
        if (formats_differ) {
            formats_.clear();
            const row_matrix block = normal_matrix(replicator::block_rows, at.shape.k, 0.02f, 42);
            for (std::size_t i = at.first; i < at.last && !was_interrupted(); ++i) {
                shown_.status("quantizing " + s_.subjects[i].name);
                formats_.push_back({s_.subjects[i], replicator(s_.subjects[i], block), {}, {}, {}, {}});
            }
        }
        if (formats_differ || at.residency != before->residency) {
            for (weights& w : formats_)
                if (!was_interrupted()) copy(w, at);
        }
        const bool eigen_differs = before == nullptr || formats_differ || at.residency != before->residency ||
                                   at.threads != before->threads || before->kernel != kernel::product;
        if (at.kernel == kernel::product && eigen_differs && !was_interrupted()) load_eigen(at);
    }

    void copy(weights& w, const station& at) {
        shown_.status("copying " + w.what.name);
        w.copies.clear();
        w.next = 0;
        const nibble::qmatrix& block = w.maker.block();
        const double row_bytes = static_cast<double>(block.memory_bytes()) / static_cast<double>(block.rows());
        const bool dram = at.residency == residency::dram;
        const index n = dram ? at.shape.n : cached_rows(at.shape.n, row_bytes);
        const int copies = dram ? copies_from_memory(row_bytes * static_cast<double>(n)) : 1;
        for (int i = 0; i < copies; ++i) w.copies.push_back(w.maker.make(n));
        w.rows = spread_rows(n, checked_rows);
        w.decoded = decode_rows(w.copies.front(), w.rows);
        w.reference = reference_product(w.decoded, x_);
    }

    void load_eigen(const station& at) {
        shown_.status("making float weights");
        eigen_.reset();  // its memory first
        const double row_bytes = static_cast<double>(at.shape.k) * sizeof(float);
        const bool dram = at.residency == residency::dram;
        eigen_shape_ = {dram ? at.shape.n : cached_rows(at.shape.n, row_bytes), at.shape.k, widest_, 1};
        if (dram) eigen_shape_.copies = copies_from_memory(row_bytes * static_cast<double>(at.shape.n));
        eigen_ = std::make_unique<float_product>(eigen_shape_, *pools_.at(at.threads));
        if (native_) {
            try {
                native_->load(eigen_shape_, at.threads);
            } catch (const bad_input& e) {
                native_failed(e);
            }
        }
        eigen_rows_ = spread_rows(eigen_shape_.n, checked_rows);
        eigen_weights_.resize(static_cast<index>(eigen_rows_.size()), at.shape.k);
        for (index i = 0; i < eigen_weights_.rows(); ++i)
            for (index k = 0; k < at.shape.k; ++k)
                eigen_weights_(i, k) = number_at(
                    weight_seed, static_cast<std::uint64_t>(eigen_rows_[static_cast<std::size_t>(i)] * at.shape.k + k));
        eigen_reference_ = reference_product(eigen_weights_, x_);
    }

    // --- rows -----------------------------------------------------------------------------------------------------

    row& add_row(const station& at, const weights& w) {
        const nibble::qmatrix& q = w.copies.front();
        row r;
        r.kernel = at.kernel;
        r.format = w.what.name;
        r.group = q.group_size() == q.cols() ? 0 : q.group_size();
        r.scale = nibble::name_of(q.scheme().storage);
        r.offset = nibble::name_of(q.offset_type());
        r.compute = "none";
        r.isa = nibble::name_of(nibble::active_isa());
        r.n = q.rows();
        r.k = q.cols();
        r.m = at.m;
        r.threads = at.threads;
        r.residency = at.residency;
        r.code = q.format().name;
        r.rule = w.what.plan.rule.name;
        r.bits = q.format().bits;
        r.decode = q.format().decode;
        r.one_scale = w.what.plan.group.rows == 0;
        r.shape_n = at.shape.n;
        out_.rows.push_back(std::move(r));
        return out_.rows.back();
    }

    // Eigen's rows go on from station to station with other formats.
    row& eigen_row(const station& at, const char* format, const std::string& isa) {
        for (row& r : out_.rows)
            if (r.format == format && r.k == at.shape.k && r.m == at.m && r.threads == at.threads &&
                r.residency == at.residency && r.shape_n == at.shape.n)
                return r;
        row r;
        r.format = format;
        r.scale = r.offset = "none";
        r.compute = nibble::name_of(nibble::compute::f32);
        r.isa = isa;
        r.n = eigen_shape_.n;
        r.k = at.shape.k;
        r.m = at.m;
        r.threads = at.threads;
        r.residency = at.residency;
        r.shape_n = at.shape.n;
        r.operations = 2.0 * static_cast<double>(r.n) * static_cast<double>(r.k) * static_cast<double>(r.m);
        r.bytes = static_cast<double>(r.n) * static_cast<double>(r.k) * sizeof(float);
        out_.rows.push_back(std::move(r));
        return out_.rows.back();
    }

    // Takes the verdict into the row; returns whether it may be timed.
    static bool judge(row& r, const verdict& v) {
        r.rel_l2_error = v.error;
        if (!v.right()) r.wrong = refusal(v);
        return v.right();
    }
    verdict check(const weights& w, index m, nibble::compute c) const {
        Eigen::MatrixXf y(static_cast<index>(w.rows.size()), m);
        for (index i = 0; i < y.rows(); ++i) y.row(i) = y_.row(w.rows[static_cast<std::size_t>(i)]).leftCols(m);
        return check_product(w.decoded, w.copies.front().group_size(), x_.leftCols(m), y, c, w.reference.leftCols(m));
    }

    // --- stations -------------------------------------------------------------------------------------------------

    void measure(const station& at, const std::string& place) {
        if (was_interrupted()) return;
        if (shown_.elapsed() - limits_at_ > limits_every) {
            meter_->measure();
            limits_at_ = shown_.elapsed();
        }
        shown_.status(place + "  checking");
        std::vector<contender> contenders;
        switch (at.kernel) {
            case kernel::product: products(at, contenders); break;
            case kernel::quantize: quantizers(at, contenders); break;
            case kernel::dequantize: dequantizers(at, contenders); break;
            case kernel::prepare: preparations(at, contenders); break;
        }
        try {
            interleave(contenders, {s_.row_budget, s_.least_samples, s_.most_samples}, order_, shown_, place);
        } catch (const bad_input& e) {  // the other process; what there is of this station stays
            native_failed(e);
        }
    }

    void products(const station& at, std::vector<contender>& contenders) {
        const bool cached = at.residency == residency::cache;
        for (weights& w : formats_) {
            for (const nibble::compute c : s_.classes) {
                if (was_interrupted()) return;
                row& r = add_row(at, w);
                r.compute = nibble::name_of(c);
                r.integer_sums = c != nibble::compute::strict_f32 && w.what.plan.format->integral();
                r.operations = 2.0 * static_cast<double>(r.n) * static_cast<double>(r.k) * static_cast<double>(r.m);
                r.bytes = static_cast<double>(w.copies.front().bytes());
                const nibble::gemm_options how{.compute = c,
                                               .workspace = &scratch_,
                                               .executor = at.threads > 1 ? executors_.at(at.threads).get() : nullptr};
                const auto once = [this, &w, how, m = at.m] {
                    const nibble::qmatrix& q = w.turn();
                    nibble::gemm(q, x_.leftCols(m), y_.topLeftCorner(q.rows(), m), how);
                };
                once();
                if (!judge(r, check(w, at.m, c))) continue;
                contenders.push_back({r.format + " " + r.compute,
                                      [once, cached](int times) {
                                          if (cached) once();
                                          return timed(times, once);
                                      },
                                      &r.seconds});
            }
        }
        row& r = eigen_row(at, eigen_format, eigen_instruction_sets());
        eigen_->run(at.m, 1, false);
        if (judge(r, check_eigen(at.m, [this](std::size_t i, index j) { return eigen_->y(eigen_rows_[i], j); })))
            contenders.push_back({eigen_format,
                                  [this, m = at.m, cached](int times) { return eigen_->run(m, times, cached); },
                                  &r.seconds});
        if (native_) native_product(at, contenders);
    }

    void native_product(const station& at, std::vector<contender>& contenders) {
        try {
            row& r = eigen_row(at, native_eigen_format, native_->instruction_sets());
            static_cast<void>(native_->run(at.m, 1, false));
            const std::vector<float> y = native_->rows(at.m, {eigen_rows_.begin(), eigen_rows_.end()});
            const auto m = static_cast<std::size_t>(at.m);
            if (judge(r, check_eigen(
                             at.m, [&y, m](std::size_t i, index j) { return y[i * m + static_cast<std::size_t>(j)]; })))
                contenders.push_back({native_eigen_format,
                                      [this, m = at.m, cached = at.residency == residency::cache](int times) {
                                          return native_->run(m, times, cached);
                                      },
                                      &r.seconds});
        } catch (const bad_input& e) {
            native_failed(e);
        }
    }

    template <class Element>
    verdict check_eigen(index m, const Element& y) const {
        Eigen::MatrixXf got(eigen_weights_.rows(), m);
        for (index i = 0; i < got.rows(); ++i)
            for (index j = 0; j < m; ++j) got(i, j) = y(static_cast<std::size_t>(i), j);
        return check_product(eigen_weights_, x_.rows(), x_.leftCols(m), got, nibble::compute::strict_f32,
                             eigen_reference_.leftCols(m));
    }

    void quantizers(const station& at, std::vector<contender>& contenders) {
        fill_source(at.shape);
        for (weights& w : formats_) {
            if (was_interrupted()) return;
            row& r = add_row(at, w);
            const auto quantize = [this, &w](index first, index n) {
                return nibble::quantize(source_.middleRows(first, n), w.what.plan);
            };
            nibble::qmatrix q;
            const index block = (std::min)(replicator::block_rows, at.shape.n);
            const double seconds = timed(1, [&] { q = quantize(0, block); });
            r.n = seconds * static_cast<double>(at.shape.n) / static_cast<double>(block) > longest_quantize
                      ? block
                      : at.shape.n;
            r.bytes = static_cast<double>(r.n) * static_cast<double>(r.k) * sizeof(float);
            const std::vector<index> rows = spread_rows(block, checked_rows);
            double signal = 0.0;
            double noise = 0.0;
            const row_matrix decoded = decode_rows(q, rows);
            for (index i = 0; i < decoded.rows(); ++i) {
                const Eigen::RowVectorXd wanted = source_.row(rows[static_cast<std::size_t>(i)]).cast<double>();
                signal += wanted.squaredNorm();
                noise += (decoded.row(i).cast<double>() - wanted).squaredNorm();
            }
            if (!judge(r, {std::sqrt(noise / signal), quantize_tolerance(r.bits)})) continue;
            contenders.push_back({r.format,
                                  [this, quantize, n = r.n](int times) {
                                      return timed(times, [&] {
                                          if (source_at_ + n > source_.rows()) source_at_ = 0;
                                          static_cast<void>(quantize(source_at_, n));
                                          source_at_ += n;
                                      });
                                  },
                                  &r.seconds});
        }
    }

    // Rows of weights, more than any cache holds, of which quantize() takes the next ones each time.
    void fill_source(const shape& of) {
        if (source_.size() != 0) return;
        const double row_bytes = static_cast<double>(of.k) * sizeof(float);
        const index rows = (std::max)(of.n, index{copies_from_memory(row_bytes)});
        const row_matrix block = normal_matrix((std::min)(replicator::block_rows, rows), of.k, 0.02f, 42);
        source_.resize(rows, of.k);
        for (index n = 0; n < rows; ++n) source_.row(n) = block.row(n % block.rows());
        source_at_ = 0;
    }

    void dequantizers(const station& at, std::vector<contender>& contenders) {
        dense_.resize(at.shape.n, at.shape.k);
        for (weights& w : formats_) {
            if (was_interrupted()) return;
            row& r = add_row(at, w);
            r.bytes = static_cast<double>(r.n) * static_cast<double>(r.k) * sizeof(float);
            const auto once = [this, &w] { nibble::dequantize(w.turn(), dense_); };
            once();
            double signal = 0.0;
            double noise = 0.0;
            for (index i = 0; i < w.decoded.rows(); ++i) {
                const Eigen::RowVectorXd wanted = w.decoded.row(i).cast<double>();
                signal += wanted.squaredNorm();
                noise += (dense_.row(w.rows[static_cast<std::size_t>(i)]).cast<double>() - wanted).squaredNorm();
            }
            if (!judge(r, {std::sqrt(noise / signal), 0.0})) continue;  // decoding is exact
            contenders.push_back({r.format, [once](int times) { return timed(times, once); }, &r.seconds});
        }
    }

    void preparations(const station& at, std::vector<contender>& contenders) {
        for (weights& w : formats_) {
            for (const nibble::compute c : s_.classes) {
                if (was_interrupted()) return;
                row& r = add_row(at, w);
                r.compute = nibble::name_of(c);
                r.residency = residency::cache;
                r.bytes = static_cast<double>(r.k) * static_cast<double>(r.m) * sizeof(float);
                const auto once = [this, &w, c, m = at.m] {
                    return nibble::prepare(w.copies.front(),
                                           nibble::eigen_view<decltype(x_.leftCols(m))>(x_.leftCols(m)).get(), {c});
                };
                nibble::gemm(w.copies.front(), once(), nibble::writable_view(y_.topLeftCorner(r.n, r.m)));
                if (!judge(r, check(w, at.m, c))) continue;
                contenders.push_back({r.format + " " + r.compute,
                                      [once](int times) { return timed(times, [&] { static_cast<void>(once()); }); },
                                      &r.seconds});
            }
        }
    }

    const settings& s_;
    progress& shown_;
    results out_;
    std::map<int, std::unique_ptr<thread_pool>> pools_;
    std::map<int, std::unique_ptr<pool_executor>> executors_;
    std::unique_ptr<limit_meter> meter_;
    double limits_at_ = 0.0;
    std::mt19937 order_{1};
    index widest_ = 1;

    std::deque<weights> formats_;
    Eigen::MatrixXf x_, y_, dense_;
    nibble::workspace scratch_;
    row_matrix source_;
    index source_at_ = 0;

    float_shape eigen_shape_;
    std::unique_ptr<float_product> eigen_;
    std::unique_ptr<native_eigen> native_;
    std::vector<index> eigen_rows_;
    row_matrix eigen_weights_;
    Eigen::MatrixXd eigen_reference_;
};

}  // namespace

results measure(const settings& s, progress& shown) { return measurement(s, shown).run(); }

}  // namespace bench::roofline
