// Convolutions of images, forward and backward, in the place of the runtime's own kernels for float32 in NCHW order.
//
// The runtime's portable kernels compute one number after the other; these go along rows, and take pointwise
// convolutions as products of matrices. They need no memory beside their results, so that the arena stays as planned.
#include "convolution.h"

#include <executorch/runtime/kernel/operator_registry.h>
#include <executorch/runtime/kernel/thread_parallel_interface.h>

#include <algorithm>
#include <cstring>

using executorch::aten::Tensor;
using executorch::extension::parallel_for;
using namespace executorch::runtime;  // with ArrayRef

// The product of matrices of BLAS, which the runtime's optimized kernels bring: column by column, C = a A B + b C.
extern "C" void sgemm_(const char*, const char*, const int*, const int*, const int*, const float*, const float*,
                       const int*, const float*, const int*, const float*, float*, const int*);

namespace {

// C (rows x columns, one row after the other) = A B, or C + A B; A and B are transposed where that is said. In tiles,
// since a product copies its operands first, which for a whole layer of MobileNetV2 takes a megabyte and for a tile 64 kB.
void product(bool turn_a, bool turn_b, int64_t rows, int64_t columns, int64_t inner, const float* a, const float* b,
             float* c, bool adds) {
  const int64_t tile = 64, depth = 256;
  const int lead_a = int(turn_a ? rows : inner), lead_b = int(turn_b ? inner : columns), lead_c = int(columns);
  const float one = 1;
  for (int64_t row = 0; row < rows; row += tile)
    for (int64_t column = 0; column < columns; column += tile)
      for (int64_t at = 0; at < inner; at += depth) {
        const int n = int(std::min(tile, rows - row)), m = int(std::min(tile, columns - column));
        const int k = int(std::min(depth, inner - at));
        const float* left = a + (turn_a ? at * rows + row : row * inner + at);
        const float* right = b + (turn_b ? column * inner + at : at * columns + column);
        const float kept = adds || at ? 1 : 0;
        sgemm_(turn_b ? "T" : "N", turn_a ? "T" : "N", &m, &n, &k, &one, right, &lead_b, left, &lead_a, &kept,
               c + row * columns + column, &lead_c);
      }
}

struct Convolution {
  int64_t images, channels, height, width;  // of x
  int64_t filters, out_height, out_width;   // of y
  int64_t kernel[2], stride[2], padding[2], dilation[2], groups;

  Convolution(const Tensor& x, const Tensor& weight, const Tensor& y, EValue** settings)
      : images(x.size(0)), channels(x.size(1)), height(x.size(2)), width(x.size(3)),
        filters(y.size(1)), out_height(y.size(2)), out_width(y.size(3)), groups(settings[5]->toInt()) {
    int64_t* all[] = {stride, padding, dilation};
    for (size_t i = 0; i < 3; ++i) {
      ArrayRef<int64_t> given = settings[i]->toIntList();
      for (size_t d = 0; d < 2; ++d) all[i][d] = given[given.size() == 1 ? 0 : d];
    }
    for (size_t d = 0; d < 2; ++d) kernel[d] = weight.size(ssize_t(2 + d));
  }
  int64_t x_plane() const { return height * width; }
  int64_t y_plane() const { return out_height * out_width; }
  int64_t x_image() const { return channels * x_plane(); }
  int64_t y_image() const { return filters * y_plane(); }
  int64_t group_channels() const { return channels / groups; }
  int64_t group_filters() const { return filters / groups; }
  int64_t filter() const { return group_channels() * kernel[0] * kernel[1]; }
  bool is_pointwise() const {
    return x_plane() == y_plane() && kernel[0] * kernel[1] == 1 && padding[0] + padding[1] == 0 &&
           stride[0] * stride[1] == 1;
  }

  // Call visit(y, x, weight, count) with the places of what one weight joins in one row: count numbers of y, one after
  // the other, and of x, one every stride. For one image and some filters.
  template <typename Visit>
  void rows(int64_t image, int64_t first, int64_t last, const Visit& visit) const {
    for (int64_t f = first; f < last; ++f)
      for (int64_t c = 0; c < group_channels(); ++c)
        for (int64_t a = 0; a < kernel[0]; ++a)
          for (int64_t b = 0; b < kernel[1]; ++b) {
            int64_t channel = f / group_filters() * group_channels() + c;
            int64_t weight = f * filter() + (c * kernel[0] + a) * kernel[1] + b;
            int64_t left = b * dilation[1] - padding[1];  // the column of x for the first one of y
            int64_t from = left < 0 ? (-left + stride[1] - 1) / stride[1] : 0;
            int64_t to = width > left ? std::min(out_width, (width - left - 1) / stride[1] + 1) : 0;
            if (from >= to) continue;
            for (int64_t r = 0; r < out_height; ++r) {
              int64_t row = r * stride[0] + a * dilation[0] - padding[0];
              if (row < 0 || row >= height) continue;
              visit(image * y_image() + f * y_plane() + r * out_width + from,
                    image * x_image() + channel * x_plane() + row * width + left + from * stride[1], weight, to - from);
            }
          }
  }

  // y = the convolution of x, for some images.
  void forward(const float* x, const float* w, const float* bias, float* y, int64_t first, int64_t last) const {
    for (int64_t image = first; image < last; ++image) {
      for (int64_t f = 0; f < filters; ++f)
        std::fill_n(y + image * y_image() + f * y_plane(), y_plane(), bias ? bias[f] : 0.0f);
      if (is_pointwise()) {
        for (int64_t g = 0; g < groups; ++g)
          product(false, false, group_filters(), y_plane(), group_channels(), w + g * group_filters() * filter(),
                  x + image * x_image() + g * group_channels() * x_plane(),
                  y + image * y_image() + g * group_filters() * y_plane(), true);
        continue;
      }
      rows(image, 0, filters, [&](int64_t to, int64_t from, int64_t at, int64_t count) {
        add_scaled(w[at], x + from, stride[1], y + to, 1, count);
      });
    }
  }

  // dx = the gradient of x, for some images.
  void backward_input(const float* dy, const float* w, float* dx, int64_t first, int64_t last) const {
    for (int64_t image = first; image < last; ++image) {
      if (is_pointwise()) {
        for (int64_t g = 0; g < groups; ++g)
          product(true, false, group_channels(), x_plane(), group_filters(), w + g * group_filters() * filter(),
                  dy + image * y_image() + g * group_filters() * y_plane(),
                  dx + image * x_image() + g * group_channels() * x_plane(), false);
        continue;
      }
      std::fill_n(dx + image * x_image(), x_image(), 0.0f);
      rows(image, 0, filters, [&](int64_t from, int64_t to, int64_t at, int64_t count) {
        add_scaled(w[at], dy + from, 1, dx + to, stride[1], count);
      });
    }
  }

  // dw = the gradient of the weight, for some filters.
  void backward_weight(const float* dy, const float* x, float* dw, int64_t first, int64_t last) const {
    std::fill(dw + first * filter(), dw + last * filter(), 0.0f);
    for (int64_t image = 0; image < images; ++image) {
      if (is_pointwise() && groups == 1) {
        product(false, true, last - first, filter(), x_plane(), dy + image * y_image() + first * y_plane(),
                x + image * x_image(), dw + first * filter(), true);
        continue;
      }
      rows(image, first, last, [&](int64_t from, int64_t to, int64_t at, int64_t count) {
        const int64_t step = stride[1];
        float sum = 0;
        if (step == 1)
          for (int64_t i = 0; i < count; ++i) sum += dy[from + i] * x[to + i];
        else
          for (int64_t i = 0; i < count; ++i) sum += dy[from + i] * x[to + i * step];
        dw[at] += sum;
      });
    }
  }

  // db = the gradient of the bias.
  void backward_bias(const float* dy, float* db) const {
    for (int64_t f = 0; f < filters; ++f) {
      float sum = 0;
      for (int64_t image = 0; image < images; ++image) {
        const float* plane = dy + image * y_image() + f * y_plane();
        for (int64_t i = 0; i < y_plane(); ++i) sum += plane[i];
      }
      db[f] = sum;
    }
  }

 private:
  // to += scale from; every `step`-th number of one of them.
  static void add_scaled(float scale, const float* from, int64_t from_step, float* to, int64_t to_step, int64_t count) {
    if (from_step == 1 && to_step == 1)
      for (int64_t i = 0; i < count; ++i) to[i] += scale * from[i];
    else
      for (int64_t i = 0; i < count; ++i) to[i * to_step] += scale * from[i * from_step];
  }
};

const char* const FORWARD = "aten::convolution.out";
const char* const BACKWARD = "aten::convolution_backward.out";

// x, weight, bias or none, stride, padding, dilation, whether transposed, output padding, groups; y. A transposed
// convolution computes the gradient of the input of a convolution, of which its x is the result.
void forward(KernelRuntimeContext& context, Span<EValue*> stack) {
  const Tensor &x = stack[0]->toTensor(), &weight = stack[1]->toTensor();
  Tensor& y = stack[9]->toTensor();
  const float *given = x.const_data_ptr<float>(), *w = weight.const_data_ptr<float>();
  const float* bias = stack[2]->isNone() ? nullptr : stack[2]->toTensor().const_data_ptr<float>();
  float* result = y.mutable_data_ptr<float>();
  const bool is_transposed = stack[6]->toBool();
  if (is_transposed && bias) return get_op_function_from_registry(FORWARD).get()(context, stack);
  Convolution layer(is_transposed ? y : x, weight, is_transposed ? x : y, stack.data() + 3);
  parallel_for(0, layer.images, 1, [&](int64_t first, int64_t last) {
    if (is_transposed) layer.backward_input(given, w, result, first, last);
    else layer.forward(given, w, bias, result, first, last);
  });
}

// dy, x, weight, sizes of the bias, stride, padding, dilation, whether transposed, output padding, groups, which
// gradients are wanted; dx, dweight, dbias.
void backward(KernelRuntimeContext& context, Span<EValue*> stack) {
  if (stack[7]->toBool()) return get_op_function_from_registry(BACKWARD).get()(context, stack);
  const Tensor &dy = stack[0]->toTensor(), &x = stack[1]->toTensor(), &weight = stack[2]->toTensor();
  ArrayRef<bool> wanted = stack[10]->toBoolList();
  Convolution layer(x, weight, dy, stack.data() + 4);
  const float* gradient = dy.const_data_ptr<float>();
  if (wanted[0]) {
    float* dx = stack[11]->toTensor().mutable_data_ptr<float>();
    parallel_for(0, layer.images, 1, [&](int64_t first, int64_t last) {
      layer.backward_input(gradient, weight.const_data_ptr<float>(), dx, first, last);
    });
  }
  if (wanted[1]) {
    float* dw = stack[12]->toTensor().mutable_data_ptr<float>();
    parallel_for(0, layer.filters, 16, [&](int64_t first, int64_t last) {
      layer.backward_weight(gradient, x.const_data_ptr<float>(), dw, first, last);
    });
  }
  if (wanted[2]) layer.backward_bias(gradient, stack[13]->toTensor().mutable_data_ptr<float>());
}

}  // namespace

// A kernel for certain kinds of tensors goes before one for all kinds. 6 is float32, 0 is bytes, as of a gradient that is
// not wanted; then the order of dimensions.
#define IMAGES "6;0,1,2,3|"
#define NUMBERS "6;0"
#define NONE "0;0"
Error register_convolutions() {
  static const Kernel kernels[] = {
      Kernel(FORWARD, "v1/" IMAGES IMAGES IMAGES "6;0,1,2,3", forward),
      Kernel(FORWARD, "v1/" IMAGES IMAGES NUMBERS "|" IMAGES "6;0,1,2,3", forward),
      Kernel(BACKWARD, "v1/" IMAGES IMAGES IMAGES IMAGES IMAGES NUMBERS, backward),
      Kernel(BACKWARD, "v1/" IMAGES IMAGES IMAGES IMAGES IMAGES NONE, backward),
      Kernel(BACKWARD, "v1/" IMAGES IMAGES IMAGES NONE "|" IMAGES NUMBERS, backward),
      Kernel(BACKWARD, "v1/" IMAGES IMAGES IMAGES NONE "|" IMAGES NONE, backward),
      Kernel(BACKWARD, "v1/" IMAGES IMAGES IMAGES IMAGES NONE "|" NUMBERS, backward),
      Kernel(BACKWARD, "v1/" IMAGES IMAGES IMAGES IMAGES NONE "|" NONE, backward),
  };
  return register_kernels({kernels, sizeof kernels / sizeof kernels[0]});
}
