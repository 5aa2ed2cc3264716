// oneDNN's vanilla_rnn behind five C functions, for peers/onednn.py: one layer, one direction, tanh, float32,
// time-major. Weights, their copies for the backward pass and the workspace are packed and allocated once, before the
// clock starts.
#include <omp.h>

#include <cstddef>
#include <cstring>
#include <exception>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"

using dnnl::memory;
using tag = memory::format_tag;
using arguments = std::unordered_map<int, memory>;

namespace {

thread_local std::string failure;

struct Rnn {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  int threads;
  dnnl::primitive inference, forward, backward;
  arguments inference_arguments, forward_arguments, backward_arguments;
  memory d_w_ih, d_w_hh, d_bias, user_d_w_ih, user_d_w_hh, user_d_bias;  // as oneDNN likes them, and as the caller does
  std::vector<memory> held;

  // A memory of its own for a given description.
  memory own(const memory::desc& md) {
    held.emplace_back(md, engine);
    return held.back();
  }
  memory at(const memory::dims& dims, tag layout, float* data) {
    return {memory::desc(dims, memory::data_type::f32, layout), engine, data};
  }
  memory packed(memory source, const memory::desc& md) {
    memory target = own(md);
    dnnl::reorder(source, target).execute(stream, source, target);
    stream.wait();
    return target;
  }
};

#if DNNL_VERSION_MAJOR >= 3
template <class Primitive, class... Rest>
typename Primitive::primitive_desc describe(const dnnl::engine& engine, dnnl::prop_kind kind, const Rest&... rest) {
  return {engine, kind, dnnl::algorithm::eltwise_tanh, dnnl::rnn_direction::unidirectional_left2right, rest...};
}
#else
template <class Primitive, class... Rest>
typename Primitive::primitive_desc describe_with(const typename Primitive::desc& desc, const dnnl::engine& engine,
                                                 const Rest&... hint) {
  return {desc, engine, hint...};
}
#endif

}  // namespace

extern "C" {

const char* fastrnn_peer_failure() { return failure.c_str(); }

// x (T, B, I), h_0 (B, H), weights as rows of outputs: w_ih (H, I), w_hh (H, H); bias (H). The last seven are written.
void* fastrnn_peer_create(int threads, int T, int B, int I, int H, float* x, float* h_0, float* w_ih, float* w_hh,
                          float* bias, float* d_output, float* d_h_n, float* output, float* h_n, float* d_x,
                          float* d_h_0, float* d_w_ih, float* d_w_hh, float* d_bias) {
  try {
    omp_set_num_threads(threads);
    auto* rnn = new Rnn;
    rnn->threads = threads;
    const memory::dims src{T, B, I}, dst{T, B, H}, state{1, 1, B, H}, wx{1, 1, I, 1, H}, wh{1, 1, H, 1, H},
        b{1, 1, 1, H};
    const auto any = [](const memory::dims& dims) { return memory::desc(dims, memory::data_type::f32, tag::any); };
    const auto as = [](const memory::dims& dims, tag layout) {
      return memory::desc(dims, memory::data_type::f32, layout);
    };
    const auto src_md = as(src, tag::tnc), dst_md = as(dst, tag::tnc), state_md = as(state, tag::ldnc),
               bias_md = as(b, tag::ldgo);
    using F = dnnl::vanilla_rnn_forward;
    using G = dnnl::vanilla_rnn_backward;
#if DNNL_VERSION_MAJOR >= 3
    const auto ahead = [&](dnnl::prop_kind kind) {
      return describe<F>(rnn->engine, kind, src_md, state_md, any(wx), any(wh), bias_md, dst_md, state_md);
    };
    const auto inference = ahead(dnnl::prop_kind::forward_inference),
               forward = ahead(dnnl::prop_kind::forward_training);
    const auto backward =
        describe<G>(rnn->engine, dnnl::prop_kind::backward, src_md, state_md, any(wx), any(wh), bias_md, dst_md,
                    state_md, src_md, state_md, any(wx), any(wh), bias_md, dst_md, state_md, forward);
#else
    constexpr auto tanh = dnnl::algorithm::eltwise_tanh;
    constexpr auto direction = dnnl::rnn_direction::unidirectional_left2right;
    const auto ahead = [&](dnnl::prop_kind kind) {
      return describe_with<F>({kind, tanh, direction, src_md, state_md, any(wx), any(wh), bias_md, dst_md, state_md},
                              rnn->engine);
    };
    const auto inference = ahead(dnnl::prop_kind::forward_inference),
               forward = ahead(dnnl::prop_kind::forward_training);
    const auto backward =
        describe_with<G>({dnnl::prop_kind::backward, tanh, direction, src_md, state_md, any(wx), any(wh), bias_md,
                          dst_md, state_md, src_md, state_md, any(wx), any(wh), bias_md, dst_md, state_md},
                         rnn->engine, forward);
#endif
    rnn->inference = F(inference), rnn->forward = F(forward), rnn->backward = G(backward);

    const memory user_wx = rnn->at(wx, tag::ldgoi, w_ih), user_wh = rnn->at(wh, tag::ldgoi, w_hh);
    arguments common{{DNNL_ARG_SRC_LAYER, rnn->at(src, tag::tnc, x)},
                     {DNNL_ARG_SRC_ITER, rnn->at(state, tag::ldnc, h_0)},
                     {DNNL_ARG_BIAS, rnn->at(b, tag::ldgo, bias)},
                     {DNNL_ARG_DST_LAYER, rnn->at(dst, tag::tnc, output)},
                     {DNNL_ARG_DST_ITER, rnn->at(state, tag::ldnc, h_n)}};
    const auto with = [&](const memory::desc& wx_md, const memory::desc& wh_md) {
      arguments all = common;
      all[DNNL_ARG_WEIGHTS_LAYER] = rnn->packed(user_wx, wx_md);
      all[DNNL_ARG_WEIGHTS_ITER] = rnn->packed(user_wh, wh_md);
      return all;
    };
    rnn->inference_arguments = with(inference.weights_layer_desc(), inference.weights_iter_desc());
    rnn->forward_arguments = with(forward.weights_layer_desc(), forward.weights_iter_desc());
    rnn->backward_arguments = with(backward.weights_layer_desc(), backward.weights_iter_desc());
    const memory workspace = rnn->own(forward.workspace_desc());
    rnn->forward_arguments[DNNL_ARG_WORKSPACE] = workspace;
    rnn->d_w_ih = rnn->own(backward.diff_weights_layer_desc());
    rnn->d_w_hh = rnn->own(backward.diff_weights_iter_desc());
    rnn->d_bias = rnn->own(bias_md);
    rnn->user_d_w_ih = rnn->at(wx, tag::ldgoi, d_w_ih);
    rnn->user_d_w_hh = rnn->at(wh, tag::ldgoi, d_w_hh);
    rnn->user_d_bias = rnn->at(b, tag::ldgo, d_bias);
    rnn->backward_arguments.insert({{DNNL_ARG_WORKSPACE, workspace},
                                    {DNNL_ARG_DIFF_DST_LAYER, rnn->at(dst, tag::tnc, d_output)},
                                    {DNNL_ARG_DIFF_DST_ITER, rnn->at(state, tag::ldnc, d_h_n)},
                                    {DNNL_ARG_DIFF_SRC_LAYER, rnn->at(src, tag::tnc, d_x)},
                                    {DNNL_ARG_DIFF_SRC_ITER, rnn->at(state, tag::ldnc, d_h_0)},
                                    {DNNL_ARG_DIFF_WEIGHTS_LAYER, rnn->d_w_ih},
                                    {DNNL_ARG_DIFF_WEIGHTS_ITER, rnn->d_w_hh},
                                    {DNNL_ARG_DIFF_BIAS, rnn->d_bias}});
    return rnn;
  } catch (const std::exception& error) {
    failure = error.what();
    return nullptr;
  }
}

// 0, or 1 after a failure; with_backward = 0 is inference.
int fastrnn_peer_run(void* handle, int with_backward) {
  auto& rnn = *static_cast<Rnn*>(handle);
  try {
    omp_set_num_threads(rnn.threads);
    if (with_backward) {
      for (memory* sum : {&rnn.d_w_ih, &rnn.d_w_hh, &rnn.d_bias}) {  // oneDNN adds into them
        std::memset(sum->get_data_handle(), 0, sum->get_desc().get_size());
      }
      rnn.forward.execute(rnn.stream, rnn.forward_arguments);
      rnn.backward.execute(rnn.stream, rnn.backward_arguments);
    } else {
      rnn.inference.execute(rnn.stream, rnn.inference_arguments);
    }
    rnn.stream.wait();
    return 0;
  } catch (const std::exception& error) {
    failure = error.what();
    return 1;
  }
}

// Weight gradients into the caller's arrays: no part of a training step, an optimizer could work on the packed ones.
int fastrnn_peer_unpack(void* handle) {
  auto& rnn = *static_cast<Rnn*>(handle);
  try {
    for (auto [from, to] :
         {std::pair{&rnn.d_w_ih, &rnn.user_d_w_ih}, {&rnn.d_w_hh, &rnn.user_d_w_hh}, {&rnn.d_bias, &rnn.user_d_bias}}) {
      dnnl::reorder(*from, *to).execute(rnn.stream, *from, *to);
    }
    rnn.stream.wait();
    return 0;
  } catch (const std::exception& error) {
    failure = error.what();
    return 1;
  }
}

// Bytes of the workspace and of the gradients in oneDNN's layout, which a training step needs.
std::size_t fastrnn_peer_held(void* handle) {
  auto& rnn = *static_cast<Rnn*>(handle);
  std::size_t bytes = 0;
  for (const memory& m : {rnn.forward_arguments.at(DNNL_ARG_WORKSPACE), rnn.d_w_ih, rnn.d_w_hh, rnn.d_bias}) {
    bytes += m.get_desc().get_size();
  }
  return bytes;
}

void fastrnn_peer_destroy(void* handle) { delete static_cast<Rnn*>(handle); }
}
