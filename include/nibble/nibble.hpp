// nibble: quantized matrices for Eigen. One include for everything but file formats (nibble/io/...) and tensors
// (nibble/tensor.hpp).
//
//     #include <nibble/nibble.hpp>
//
//     Eigen::MatrixXf W = ..., X = ...;                     // N x K weights, K x M activations
//     auto Wq = nibble::quantize<nibble::q4_k>(W);          // or nf4, int8, mxfp4, ... or by name
//     Eigen::MatrixXf Y = Wq * X;                           // fused product
//     double dB = nibble::sqnr_db(W, nibble::dequantize(Wq));
//     double bits = Wq.bits_per_weight();
//
//     for (const nibble::recipe& r : nibble::recipes()) ... // what there is
#pragma once

#include "activation_function.hpp"
#include "dequantize.hpp"
#include "gemm.hpp"
#include "integer_gemm.hpp"
#include "metrics.hpp"
#include "quantized_activations.hpp"
#include "quantize.hpp"
#include "recipe.hpp"
#include "rows.hpp"
