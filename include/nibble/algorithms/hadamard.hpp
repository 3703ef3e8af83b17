// Hadamard rotations (QuaRot, Ashkboos et al. 2024, arXiv:2404.00456; QuIP#, Tseng et al. 2024, arXiv:2402.04396): outliers of
// one channel are spread over all of them, and the product stays what it was, for R is orthogonal: (W R^T) (R X) = W X.
//
//     nibble::hadamard_rotation R(K, seed);        // R = H diag(signs) / sqrt(K)
//     R.rotate_rows(W);                            // W <- W R^T: once, before quantizing
//     R.rotate_columns(X);                         // X <- R X: each token; or fold R into what makes X
//     R.restore_columns(X);                        // X <- R^T X, the inverse
//
// H is a Hadamard matrix of order K = 2^m q: the one of order q across, Sylvester's within, as a fast transform of
// K (m + q) additions. Orders q: 1, and all that Paley's two constructions (1933) give below 512: p + 1 for a prime power
// p = 3 mod 4 and 2 (p + 1) for p = 1 mod 4, among them 12, 20, 28, 36, 44, 52, 60, 108 and 140.
// Without signs and for K a power of two, H is symmetric and R its own inverse. Paley's matrices are not symmetric: there, and
// with signs, the inverse is the transpose alone.
#pragma once

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "../detail/fp_environment.hpp"
#include "../eigen.hpp"

namespace nibble::inline NIBBLE_ABI {
namespace detail {

/// The field of p^degree elements as it is needed here: which differences are squares. Elements are polynomials in base p.
class small_field {
public:
    /// size: a power of an odd prime, else empty().
    explicit small_field(int size) {
        int p = 3;
        while (p <= size && size % p != 0) p += 2;
        if (size < 3 || p > size) return;
        int degree = 0, rest = size;
        for (; rest % p == 0; rest /= p) ++degree;
        if (rest != 1 || degree > 5) return;
        // x^degree = a polynomial of lower degree: irreducible when all powers of some element differ, so that one is searched
        // whose x generates every element but zero.
        for (int reduced = 1; reduced < size; ++reduced)
            for (int generator = degree == 1 ? 2 : p; generator < (degree == 1 ? size : p + 1); ++generator)
                if (try_generator(p, degree, size, reduced, generator)) return;
    }
    [[nodiscard]] bool empty() const noexcept { return square_.empty(); }
    /// 0 for a = b, 1 if a - b is a square, else -1.
    [[nodiscard]] int character(int a, int b) const noexcept {
        int difference = 0;
        for (int place = 1; place < size_; place *= p_) difference += place * ((a / place % p_ - b / place % p_ + p_) % p_);
        return square_[static_cast<std::size_t>(difference)];
    }

private:
    bool try_generator(int p, int degree, int size, int reduced, int generator) {
        std::vector<signed char> square(static_cast<std::size_t>(size), 0);
        int power = 1;
        for (int i = 0; i < size - 1; ++i) {
            signed char& s = square[static_cast<std::size_t>(power)];
            if (s != 0) return false;
            s = i % 2 == 0 ? 1 : -1;
            if (degree == 1) {
                power = power * generator % p;
                continue;
            }
            const int top = power / (size / p);  // times x
            int next = power % (size / p) * p;
            int sum = 0;
            for (int place = 1; place < size; place *= p) sum += place * ((next / place % p + top * (reduced / place % p)) % p);
            power = sum;
        }
        if (power != 1) return false;
        p_ = p;
        size_ = size;
        square_ = std::move(square);
        return true;
    }

    int p_ = 3, size_ = 0;
    std::vector<signed char> square_;
};

/// The entries of Paley's Hadamard matrix of order q, row by row, 1 or -1; empty if he has none.
[[nodiscard]] inline std::vector<signed char> paley(int q) {
    std::vector<signed char> h;
    const auto n = static_cast<std::size_t>(q);
    if (const small_field f(q - 1); !f.empty() && (q - 1) % 4 == 3) {  // I + S, S = [0 1; -1 Q]
        h.resize(n * n);
        for (int i = 0; i < q; ++i)
            for (int j = 0; j < q; ++j)
                h[static_cast<std::size_t>(i) * n + static_cast<std::size_t>(j)] = static_cast<signed char>(
                    i == j ? 1 : i == 0 ? 1 : j == 0 ? -1 : f.character(i - 1, j - 1));
        return h;
    }
    const int half = q / 2;
    if (q % 4 != 0 || (half - 1) % 4 != 1) return h;
    const small_field f(half - 1);
    if (f.empty()) return h;
    h.resize(n * n);
    for (int i = 0; i < half; ++i)  // C = [0 1; 1 Q]: 0 becomes [1 -1; -1 -1], c becomes c [1 1; 1 -1]
        for (int j = 0; j < half; ++j) {
            const int c = i == j ? 0 : i == 0 || j == 0 ? 1 : f.character(i - 1, j - 1);
            for (int a = 0; a < 2; ++a)
                for (int b = 0; b < 2; ++b) {
                    const int zero = a == 0 && b == 0 ? 1 : -1, other = a == 1 && b == 1 ? -1 : 1;
                    h[static_cast<std::size_t>(2 * i + a) * n + static_cast<std::size_t>(2 * j + b)] = static_cast<signed char>(c == 0 ? zero : c * other);
                }
        }
    return h;
}

NIBBLE_FP_BEGIN

/// x <- H x of the order `count`, a power of two, in natural (Sylvester's) order.
NIBBLE_NOINLINE inline void walsh_hadamard(float* x, index count) noexcept {
    for (index h = 1; h < count; h *= 2)
        for (index i = 0; i < count; i += 2 * h)
            for (index j = i; j < i + h; ++j) {
                const float a = x[j], b = x[j + h];
                x[j] = a + b;
                x[j + h] = a - b;
            }
}
/// out <- (P x I) in: q blocks of `count`, P of order q, or its transpose.
NIBBLE_NOINLINE inline void across(const signed char* p, index q, bool transposed, const float* in, index count, float* out) noexcept {
    for (index i = 0; i < q; ++i) {
        float* to = out + i * count;
        for (index l = 0; l < count; ++l) to[l] = 0.0f;
        for (index j = 0; j < q; ++j) {
            const float* from = in + j * count;
            if (p[transposed ? j * q + i : i * q + j] > 0)
                for (index l = 0; l < count; ++l) to[l] += from[l];
            else
                for (index l = 0; l < count; ++l) to[l] -= from[l];
        }
    }
}
NIBBLE_NOINLINE inline void scale_values(float* x, index n, float by, const float* signs) noexcept {
    if (signs == nullptr)
        for (index i = 0; i < n; ++i) x[i] *= by;
    else
        for (index i = 0; i < n; ++i) x[i] *= by * signs[i];
}

NIBBLE_FP_END

}  // namespace detail

/// x <- H x, H of order 2^m in natural order and not normalized: exact while the sums of |x| stay below 2^24 of the last place.
/// Throws errc::unsupported unless x has a power of two elements.
inline void walsh_hadamard(std::span<float> x) {
    if (x.empty() || (x.size() & (x.size() - 1)) != 0)
        detail::fail(errc::unsupported, "walsh_hadamard: " + std::to_string(x.size()) + " elements, not a power of two");
    const detail::fp_environment environment;
    detail::walsh_hadamard(x.data(), static_cast<index>(x.size()));
}

/// R = H diag(signs) / sqrt(n), orthogonal. A value; small. Results are the same bits everywhere.
class hadamard_rotation {
public:
    /// No signs: R = H / sqrt(n). Throws errc::unsupported for an order that has no matrix here.
    explicit hadamard_rotation(index n) : order_(n) {
        if (status s = check(n); !s) detail::fail(s.code(), s.message());
        inner_ = n & -n;
        while (n / inner_ != 1 && detail::paley(static_cast<int>(n / inner_)).empty()) inner_ /= 2;
        if (n / inner_ > 1) paley_ = std::make_shared<const std::vector<signed char>>(detail::paley(static_cast<int>(n / inner_)));
        factor_ = static_cast<float>(1.0 / std::sqrt(static_cast<double>(n)));
    }
    /// Random signs, decided by the seed (splitmix64, its top bit).
    hadamard_rotation(index n, std::uint64_t seed) : hadamard_rotation(n) {
        std::vector<float> signs(static_cast<std::size_t>(n));
        for (float& s : signs) {
            seed += 0x9e3779b97f4a7c15u;
            std::uint64_t z = (seed ^ (seed >> 30)) * 0xbf58476d1ce4e5b9u;
            z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
            s = ((z ^ (z >> 31)) >> 63) != 0 ? -1.0f : 1.0f;
        }
        signs_ = std::make_shared<const std::vector<float>>(std::move(signs));
    }

    /// Whether there is a rotation of that order; the message says why not.
    [[nodiscard]] static status check(index n) {
        if (n >= 1)
            for (index inner = n & -n; inner >= 1; inner /= 2) {
                const index q = n / inner;
                if (q == 1 || (q < 512 && !detail::paley(static_cast<int>(q)).empty())) return {};
                if (q >= 512) break;
            }
        return status(errc::unsupported, "hadamard_rotation: there is no Hadamard matrix of order " + std::to_string(n) +
                                             " here; orders are powers of two times 1, or times an order of Paley's below 512 (12, 20, 28, 36, 44, 52, 60, ...)");
    }

    [[nodiscard]] index order() const noexcept { return order_; }
    /// The signs, or none.
    [[nodiscard]] std::span<const float> signs() const noexcept { return signs_ != nullptr ? std::span<const float>(*signs_) : std::span<const float>(); }

    /// x <- R x for each column of an n x T matrix of floats: activations. Throws errc::shape_mismatch.
    template <class X>
        requires eigen_expression<std::remove_cvref_t<X>>
    void rotate_columns(X&& x) const {
        apply(by_column(writable_view(x)), false);
    }
    /// W <- W R^T: each row of an N x n matrix of floats is rotated.
    template <class W>
        requires eigen_expression<std::remove_cvref_t<W>>
    void rotate_rows(W&& w) const {
        apply(writable_view(w), false);
    }
    /// The inverse, R^T, of columns and of rows.
    template <class X>
        requires eigen_expression<std::remove_cvref_t<X>>
    void restore_columns(X&& x) const {
        apply(by_column(writable_view(x)), true);
    }
    template <class W>
        requires eigen_expression<std::remove_cvref_t<W>>
    void restore_rows(W&& w) const {
        apply(writable_view(w), true);
    }

private:
    [[nodiscard]] static float_view by_column(const float_view& v) noexcept { return {v.data, v.cols, v.rows, v.col_stride, v.row_stride}; }

    void apply(const float_view& rows, bool inverse) const {
        if (rows.cols != order_)
            detail::fail(errc::shape_mismatch, "hadamard_rotation: vectors of " + std::to_string(rows.cols) + " elements, the rotation is of order " + std::to_string(order_));
        const detail::fp_environment environment;
        std::vector<float> a(static_cast<std::size_t>(order_)), b(paley_ != nullptr ? a.size() : 0);
        for (index r = 0; r < rows.rows; ++r) {
            for (index k = 0; k < order_; ++k) a[static_cast<std::size_t>(k)] = rows.at(r, k);
            const float* result = transform(a.data(), b.data(), inverse);
            for (index k = 0; k < order_; ++k) rows.at(r, k) = result[k];
        }
    }
    /// Of one vector; returns which of the two holds it then. The factor goes with the signs, that is first, or last in the inverse.
    const float* transform(float* a, float* b, bool inverse) const noexcept {
        const float* signs = signs_ != nullptr ? signs_->data() : nullptr;
        if (!inverse) detail::scale_values(a, order_, factor_, signs);
        for (index i = 0; i < order_; i += inner_) detail::walsh_hadamard(a + i, inner_);
        if (paley_ != nullptr) {
            detail::across(paley_->data(), order_ / inner_, inverse, a, inner_, b);
            std::swap(a, b);
        }
        if (inverse) detail::scale_values(a, order_, factor_, signs);
        return a;
    }

    index order_, inner_ = 1;
    float factor_ = 1.0f;
    std::shared_ptr<const std::vector<signed char>> paley_;
    std::shared_ptr<const std::vector<float>> signs_;
};

}  // namespace nibble
