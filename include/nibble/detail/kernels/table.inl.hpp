// The kernels of this level (no include guard: see digits.inl.hpp).
inline constexpr kernel_table kernels = {
    tile_panels,
    &digit_kernels_of<narrow_kind>,
    &digit_kernels_of<wide_kind>,
    &unpack_quads,
    &read_quads,
    &expand_lines,
    &largest_magnitude_bits,
    &round_values,
    value_columns,
    &multiply_values,
};
