// The kernels of this level (no include guard: see product.inl.hpp).
inline constexpr kernel_table kernels = {
    {&multiply_digits<1>, &multiply_digits<2>, &multiply_digits<3>},
    &multiply_chain,
    &multiply_strict,
    &read_quads,
};
