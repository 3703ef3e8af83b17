// Which weights share one scale. Groups run along K (the columns of W); a 2-D block also spans rows.
#pragma once

#include "error.hpp"

namespace nibble::inline NIBBLE_ABI {

/// rows x cols weights share one scale; 0 means all of them. A last group that is shorter has a scale of its own.
struct granularity {
    index rows = 1;
    index cols = 0;

    friend constexpr bool operator==(const granularity&, const granularity&) noexcept = default;
};

/// One scale for the whole matrix.
struct per_tensor {
    constexpr operator granularity() const noexcept { return {0, 0}; }
};
/// One scale for each row of W (an output channel).
struct per_channel {
    constexpr operator granularity() const noexcept { return {1, 0}; }
};
/// One scale for each `size` consecutive weights of a row. Any size from 1 up; it need not divide K.
struct per_group {
    index size;
    constexpr operator granularity() const noexcept { return {1, size}; }
};
/// One scale for each tile of rows x cols weights (DeepSeek FP8: 128 x 128).
struct per_block {
    index rows;
    index cols;
    constexpr operator granularity() const noexcept { return {rows, cols}; }
};

}  // namespace nibble
