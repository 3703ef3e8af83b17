// Handwritten digits in 4 and 2 bits: quantized after training, then trained while quantized, then on integers alone. An average
// hides which digits pay for it, so accuracy is shown for each.
#include <nibble/io/safetensors.hpp>
#include <nibble/layers/fake_quantize.hpp>
#include <nibble/nibble.hpp>

#include <array>
#include <cstdio>
#include <numeric>
#include <random>
#include <string>

using Eigen::MatrixXf;
using Eigen::VectorXf;
using Eigen::Index;

namespace {

struct digits {
    MatrixXf x;               // 64 x images, 0 .. 1
    std::vector<int> labels;
};

struct layer {
    MatrixXf w;
    VectorXf b;
};
using network = std::array<layer, 2>;  // 64 -> relu 32 -> 10

/// Momentum, one for each matrix that learns.
struct descent {
    MatrixXf velocity;
    void operator()(Eigen::Ref<MatrixXf> p, const MatrixXf& gradient, float rate) {
        if (velocity.size() == 0) velocity.setZero(gradient.rows(), gradient.cols());
        velocity = 0.9f * velocity - rate * gradient;
        p += velocity;
    }
};

/// Where weights and the hidden activations are rounded.
struct rounding {
    nibble::fake_quantize first, second, hidden;
};

/// The outputs for images x, 10 x images. `r` rounds, if there is one.
MatrixXf forward(const network& n, const MatrixXf& x, MatrixXf& hidden, rounding* r) {
    hidden = (((r != nullptr ? r->first.forward(n[0].w) : n[0].w) * x).colwise() + n[0].b).cwiseMax(0.0f);
    return ((r != nullptr ? MatrixXf(r->second.forward(n[1].w) * r->hidden.forward(hidden)) : MatrixXf(n[1].w * hidden))).colwise() + n[1].b;
}

void train(network& n, const digits& data, int epochs, float rate, rounding* r) {
    std::mt19937 random(7);
    std::vector<Index> order(data.labels.size());
    std::iota(order.begin(), order.end(), Index{0});
    std::array<descent, 4> moves;
    for (int epoch = 0; epoch < epochs; ++epoch, rate *= 0.95f) {
        for (std::size_t i = order.size() - 1; i > 0; --i) std::swap(order[i], order[random() % (i + 1)]);  // the same everywhere
        for (std::size_t at = 0; at + 32 <= order.size(); at += 32) {
            const std::vector<Index> batch(order.begin() + static_cast<std::ptrdiff_t>(at), order.begin() + static_cast<std::ptrdiff_t>(at) + 32);
            const MatrixXf x = data.x(Eigen::all, batch);
            MatrixXf hidden;
            MatrixXf d = forward(n, x, hidden, r);
            for (Index j = 0; j < d.cols(); ++j) {  // softmax less the truth: the gradient of the cross-entropy
                d.col(j) = (d.col(j).array() - d.col(j).maxCoeff()).exp();
                d.col(j) /= d.col(j).sum();
                d(data.labels[static_cast<std::size_t>(batch[static_cast<std::size_t>(j)])], j) -= 1.0f;
            }
            d /= 32.0f;
            const MatrixXf seen = r != nullptr ? nibble::fake_quantized(hidden, r->hidden.grid()) : hidden;
            const MatrixXf second = r != nullptr ? nibble::fake_quantized(n[1].w, r->second.grid()) : n[1].w;
            MatrixXf d_second = d * seen.transpose(), back = second.transpose() * d;
            if (r != nullptr) {
                back = r->hidden.backward(back);
                d_second = r->second.backward(d_second);
            }
            back = (hidden.array() > 0.0f).select(back, 0.0f);
            MatrixXf d_first = back * x.transpose();
            if (r != nullptr) d_first = r->first.backward(d_first);
            moves[0](n[0].w, d_first, rate);
            moves[1](n[0].b, back.rowwise().sum(), rate);
            moves[2](n[1].w, d_second, rate);
            moves[3](n[1].b, d.rowwise().sum(), rate);
            if (r != nullptr)
                for (nibble::fake_quantize* f : {&r->first, &r->second, &r->hidden}) f->step(rate);
        }
    }
}

std::vector<int> decide(const MatrixXf& y) {
    std::vector<int> out(static_cast<std::size_t>(y.cols()));
    for (Index j = 0; j < y.cols(); ++j) y.col(j).maxCoeff(&out[static_cast<std::size_t>(j)]);
    return out;
}

/// Prints the accuracy of each class and of all, and the class that lost most by `before`; returns those of all classes, then of all.
std::array<double, 11> report(const char* name, const digits& data, const std::vector<int>& got, const std::array<double, 11>* before) {
    std::array<double, 11> right{}, count{};
    for (std::size_t i = 0; i < got.size(); ++i)
        for (const std::size_t c : {static_cast<std::size_t>(data.labels[i]), std::size_t{10}}) {
            right[c] += got[i] == data.labels[i] ? 1.0 : 0.0;
            count[c] += 1.0;
        }
    std::printf("%-12s", name);
    for (std::size_t c = 0; c < 11; ++c) std::printf(c < 10 ? " %4.0f" : " %6.1f", 100.0 * (right[c] /= count[c]));
    std::size_t worst = 0;
    for (std::size_t c = 1; c < 10 && before != nullptr; ++c)
        if ((*before)[c] - right[c] > (*before)[worst] - right[worst]) worst = c;
    if (before != nullptr && (*before)[worst] > right[worst]) std::printf("   most lost: digit %zu, %.0f points", worst, 100.0 * ((*before)[worst] - right[worst]));
    std::printf("\n");
    return right;
}

network rounded(const network& n, const nibble::code_format& format) {
    const nibble::mse search{.offset = nibble::offset_kind::zero_point};
    const nibble::quantize_plan plan = nibble::make_plan(nibble::format_handle(format), search, nibble::per_channel{});
    return {layer{nibble::dequantize(nibble::quantize(n[0].w, plan)), n[0].b}, layer{nibble::dequantize(nibble::quantize(n[1].w, plan)), n[1].b}};
}

}  // namespace

int main() {
    using namespace nibble;
    const auto file = io::safetensors::open(NIBBLE_EXAMPLE_DIGITS "/digits.safetensors");
    const auto pixels = file.value().at("pixels").value()->bytes, labels = file.value().at("labels").value()->bytes;
    digits train_set, test_set;  // every fifth image of each digit is for the test
    std::array<int, 10> seen{};
    std::vector<Index> parts[2];
    for (std::size_t i = 0; i < labels.size(); ++i) {
        const auto digit = static_cast<std::size_t>(labels[i]);
        const bool test = seen[digit]++ % 5 == 4;
        parts[test].push_back(static_cast<Index>(i));
        (test ? test_set : train_set).labels.push_back(static_cast<int>(digit));
    }
    using images = Eigen::Matrix<std::uint8_t, 64, Eigen::Dynamic>;
    const Eigen::Map<const images> bytes(reinterpret_cast<const std::uint8_t*>(pixels.data()), 64, static_cast<Index>(labels.size()));
    const MatrixXf all = bytes.cast<float>() / 16.0f;
    train_set.x = all(Eigen::all, parts[0]);
    test_set.x = all(Eigen::all, parts[1]);

    std::mt19937 random(1);
    const auto weights = [&](Index rows, Index cols) {  // sums of uniform numbers: the same with every standard library
        MatrixXf w(rows, cols);
        for (float& v : w.reshaped()) v = static_cast<float>(random() >> 8) + static_cast<float>(random() >> 8);
        w = (w.array() / 16777216.0f - 1.0f) * 3.0f / std::sqrt(static_cast<float>(cols));
        return w;
    };
    network net{layer{weights(32, 64), VectorXf::Zero(32)}, layer{weights(10, 32), VectorXf::Zero(10)}};
    train(net, train_set, 40, 0.05f, nullptr);

    MatrixXf hidden;
    std::printf("accuracy in %%   0    1    2    3    4    5    6    7    8    9    all   (%td images)\n", test_set.x.cols());
    const auto exact = report("float", test_set, decide(forward(net, test_set.x, hidden, nullptr)), nullptr);
    const network four = rounded(net, int4::format), two = rounded(net, int2::format);
    report("4 bits", test_set, decide(forward(four, test_set.x, hidden, nullptr)), &exact);
    const auto after = report("2 bits", test_set, decide(forward(two, test_set.x, hidden, nullptr)), &exact);

    // Training goes on from the float weights, on grids that begin where LSQ does.
    static_cast<void>(forward(net, train_set.x, hidden, nullptr));
    rounding r{fake_quantize(lsq_grid(net[0].w, int2::format, per_channel{})), fake_quantize(lsq_grid(net[1].w, int2::format, per_channel{})),
               fake_quantize(lsq_grid(hidden, int8::format, per_tensor{}, false))};
    train(net, train_set, 60, 0.02f, &r);
    const std::vector<int> trained = decide(forward(net, test_set.x, hidden, &r));
    const auto during = report("2 bits, QAT", test_set, trained, &exact);

    // Weights in 2 bits, activations in 8, sums in int32.
    const qmatrix first = quantize(net[0].w, r.first.grid()), second = quantize(net[1].w, r.second.grid());
    const auto x = quantize_activations(test_set.x, activation_rule::fixed(1.0f / 16.0f, 0, activation_type::u8));  // pixels are exact
    MatrixXf h(32, test_set.x.cols()), y(10, test_set.x.cols());
    integer_gemm(first, x, h, {.bias = net[0].b, .activation = activation::relu});
    const float step = r.hidden.grid().scale(0, 0);
    integer_gemm(second, quantize_activations(h, activation_rule::fixed(step, 0, activation_type::u8)), y, {.bias = net[1].b});
    const std::vector<int> deployed = decide(y);
    report("on integers", test_set, deployed, &exact);

    const double recovered = (during[10] - after[10]) / (exact[10] - after[10]);
    std::printf("training won back %.0f %% of what 2 bits lost; %zu bytes of weights instead of %td; predictions on integers are %s\n", 100.0 * recovered,
                first.bytes() + second.bytes(), 4 * (net[0].w.size() + net[1].w.size()), deployed == trained ? "the same" : "NOT the same");
    return exact[10] > 0.93 && after[10] < exact[10] && recovered >= 0.8 && deployed == trained ? 0 : 1;
}
