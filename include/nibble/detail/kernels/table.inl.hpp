// The kernels of this level (no include guard: see digits.inl.hpp).
inline constexpr kernel_table kernels = {
    tile_panels,
    &digit_kernels_of<narrow_kind>,
    &digit_kernels_of<wide_kind>,
    &unpack_quads,
    &expand_lines,
    &largest_magnitude_bits,
    &round_values,
    value_columns,
    &multiply_values,
    &multiply_coded,
    {&scan<false>, &scan<true>, &invert, &round_scales, &encode, &encode_fp16_row, &encode_bf16_row, &pack, &decode, &has_special, &transpose_words,
     &load_fp16_row, &load_bf16_row, &load_f64_row,
     &unpack_blocks, &unpack_numbers, &search_affine, &search_symmetric},
};
