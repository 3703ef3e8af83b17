// Activations of a calibration run as blocks of contiguous floats: what importance, observers and Hessians read.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "../detail/load.hpp"
#include "../eigen.hpp"
#include "../qmatrix.hpp"

namespace nibble::inline NIBBLE_ABI::detail {

/// Calls body(values, tokens) for blocks of whole tokens of x (K x T, a column per token): `values` holds K floats for each
/// token, one token after the other. All of x is checked first, so that a caller's sums never hold half a batch.
/// Throws errc::shape_mismatch unless x has `channels` rows, errc::non_finite with the index of a NaN or Inf.
template <class Body>
void for_token_blocks(const const_view& x, index channels, const char* who, Body body) {
    if (x.rows != channels)
        fail(errc::shape_mismatch, std::string(who) + ": the activations are " + shape_text(x.rows, x.cols) + ", expected " +
                                       std::to_string(channels) + " rows (a column per token)");
    if (x.rows == 0 || x.cols == 0) return;
    if (x.data == nullptr) fail(errc::invalid_argument, std::string(who) + ": the activations are a null pointer");
    const const_view tokens{x.data, x.type, x.cols, x.rows, x.col_stride, x.row_stride};
    const index block = (std::min)(x.cols, index{512});
    std::vector<float> values(static_cast<std::size_t>(checked_product(block, x.rows)));
    for (const bool check : {true, false})
        for (index t = 0; t < x.cols; t += block) {
            const index count = (std::min)(block, x.cols - t);
            load_block(tokens, t, count, 0, x.rows, values.data(), x.rows);
            if (!check) {
                body(static_cast<const float*>(values.data()), count);
                continue;
            }
            const index bad = find_non_finite(values.data(), count * x.rows);
            if (bad >= 0)
                fail(errc::non_finite, std::string(who) + ": X(" + std::to_string(bad % x.rows) + ", " + std::to_string(t + bad / x.rows) +
                                           ") is " + non_finite_name(values.data() + bad));
        }
}

}  // namespace nibble::detail
