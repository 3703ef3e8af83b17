// What is measured: formats, and cheap distinct copies of one quantized matrix.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <nibble/nibble.hpp>

#include "../types.hpp"

namespace bench::roofline {

/// A format: a recipe, or one that has a name here only.
struct subject {
    std::string name;
    nibble::quantize_plan plan;
};

/// What --format means when it is not given: every code format, and the groupings and scales that have targets.
[[nodiscard]] std::vector<subject> default_subjects();

/// A recipe, a code format (its usual recipe), or int4_per_channel. Throws bad_input listing what there is.
[[nodiscard]] subject subject_named(const std::string& name);

/// Makes matrices of any number of rows whose bytes lie in different memory, for the price of writing them. Quantizing
/// costs up to a hundred times more, and the time of a product does not depend on the numbers: so `block_rows` rows are
/// quantized, and row n of a copy is row n % block_rows of those.
class replicator {
public:
    static constexpr nibble::index block_rows = 256;

    /// weights: block_rows x K.
    replicator(const subject& s, const row_matrix& weights);

    [[nodiscard]] nibble::qmatrix make(nibble::index rows) const;
    /// The quantized rows.
    [[nodiscard]] const nibble::qmatrix& block() const noexcept { return block_; }

private:
    nibble::quantize_plan plan_;
    nibble::qmatrix block_;
    std::vector<std::uint16_t> codes_;             // [row][k]
    std::vector<std::uint8_t> bytes_;              // the same, of formats of at most 8 bits
    std::vector<std::uint32_t> scales_, offsets_;  // [row][group]
};

}  // namespace bench::roofline
