// The kernels of this level (no include guard: see product.inl.hpp).
inline constexpr kernel_table kernels = {
    {&multiply_digits<1>, &multiply_digits<2>, &multiply_digits<3>},
    &multiply_chain,
    &multiply_strict,
    &read_quads,
    {&scan<false>, &scan<true>, &invert, &round_scales, &encode, &encode_fp16_row, &encode_bf16_row, &pack, &decode, &transpose_words,
     &load_fp16_row, &load_bf16_row, &load_f64_row},
};
