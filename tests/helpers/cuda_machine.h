// The machines of csrc/cuda on the host: the kernels' own source, run warp by warp. Registers and shared memory are
// full of NaN before they are written, each block's memory is an allocation of its own (AddressSanitizer sees what lies
// outside), and between two barriers the warps of all blocks run in an order that a seed chooses, one of them to its
// end before the next begins: what needs a barrier that is not there gives other results.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/mma.cuh"
#include "cuda/persistent.cuh"
#include "cuda/step.cuh"

namespace fastrnn::gpu {

class Order {  // of the warps, and of the lanes of a warp; seed 0: ascending, 1: descending, else random
public:
  explicit Order(unsigned seed) : seed_(seed), random_(seed) {}
  std::vector<int> of(int count) {
    std::vector<int> order(static_cast<std::size_t>(count));
    std::iota(order.begin(), order.end(), 0);
    if (seed_ == 1) std::reverse(order.begin(), order.end());
    if (seed_ > 1) std::shuffle(order.begin(), order.end(), random_);
    return order;
  }

private:
  unsigned seed_;
  std::mt19937 random_;
};

// 32 lanes with their registers
template <class State, class Where, class Number>
struct HostWarp {
  using A = Number;
  std::vector<State> registers = std::vector<State>(32);
  std::vector<Where> places;
  std::vector<int> order;

  template <class F>
  void each(F f) {
    for (const int lane : order) f(registers[static_cast<std::size_t>(lane)], places[static_cast<std::size_t>(lane)]);
  }
  template <int N, class Word = A, class Send, class Receive>
  void exchange(int mask, Send send, Receive receive) {
    Word out[32][N];
    for (int lane = 0; lane < 32; ++lane) send(registers[static_cast<std::size_t>(lane)], lane, out[lane]);
    for (int lane = 0; lane < 32; ++lane) receive(registers[static_cast<std::size_t>(lane)], lane, out[lane ^ mask]);
  }

  // A (16, k) and B (k, 8), gathered from the lanes as PTX ISA lays them out; the sum in double, rounded once
  template <Precision P, class GetFactors>
  void mma(GetFactors factors_of, int which) {
    constexpr int per_word = P == Precision::f16 || P == Precision::bf16 ? 2 : 1, k = 8 * per_word;
    float a[16][k], b[k][8];
    for (int lane = 0; lane < 32; ++lane) {
      const Factors factors = factors_of(registers[static_cast<std::size_t>(lane)]);
      const int g = lane / 4, q = lane % 4;
      for (int x = 0; x < 4; ++x) numbers<P>(factors.a[x], &a[g + x % 2 * 8][(q + x / 2 * 4) * per_word], 1);
      for (int x = 0; x < 2; ++x) numbers<P>(factors.b[x], &b[(q + x * 4) * per_word][g], 8);
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int x = 0; x < 4; ++x) {
        const int row = lane / 4 + x / 2 * 8, column = lane % 4 * 2 + x % 2;
        float& c = registers[static_cast<std::size_t>(lane)].sum[which][x];
        double sum = c;
        for (int j = 0; j < k; ++j) sum += static_cast<double>(a[row][j]) * b[j][column];
        c = static_cast<float>(sum);
      }
    }
  }

  template <Precision P>
  static void numbers(unsigned word, float* to, int stride) {
    if constexpr (P == Precision::f16 || P == Precision::bf16) {
      for (int x = 0; x < 2; ++x) {
        const unsigned short h = static_cast<unsigned short>(word >> 16 * x);
        to[x * stride] = P == Precision::f16 ? from_f16(h) : from_bf16(h);
      }
    } else {
      if (word & 0x1fffu && (word & 0x7fffffffu) < 0x7f800000u) throw std::logic_error("not a tf32");
      *to = from_bits(word);
    }
  }
};

template <class State>
void fill_with_nan(State& state) {  // registers before they are written
  std::memset(static_cast<void*>(&state.w), 0xff, sizeof state.w);
  std::memset(static_cast<void*>(&state.sum), 0xff, sizeof state.sum);
}

template <class State>
void poison(State& state) {
  for (auto& sum : state.sum) sum = std::numeric_limits<std::decay_t<decltype(sum)>>::quiet_NaN();
}

template <class Program>
class HostCluster {
public:
  using State = typename Program::State;

  struct Warp : HostWarp<State, Place, float> {
    HostCluster* cluster = nullptr;
    template <int N>
    void send(const Place&, int peer, int to, const unsigned (&words)[N], int64 i) {
      for (int x = 0; x < N; ++x) cluster->receive(peer, to + x, words[x], i);
    }
    void leave(float* address, float first, float second) { cluster->left_.push_back({address, first, second}); }
  };

  HostCluster(const Call& call, int64 group, int threads, int64 shared_bytes, unsigned seed)
      : call_(call), order_(seed) {
    const int blocks = static_cast<int>(call.cluster);
    for (int rank = 0; rank < blocks; ++rank) {
      // 16-byte alignment, and nothing behind the last byte
      shared_.emplace_back(new Four[static_cast<std::size_t>(shared_bytes / 16)]);
      std::memset(static_cast<void*>(shared_.back().get()), 0xff, static_cast<std::size_t>(shared_bytes));
      for (int warp = 0; warp < threads / 32; ++warp) {
        Warp w;
        w.cluster = this;
        for (int lane = 0; lane < 32; ++lane) {
          w.places.push_back({group, rank, warp, lane, threads, reinterpret_cast<char*>(shared_.back().get())});
        }
        for (State& state : w.registers) fill_with_nan(state);
        warps_.push_back(std::move(w));
      }
    }
    received_.assign(static_cast<std::size_t>(2 * blocks), 0);
  }

  template <class F>
  void warps(F f) {
    for (const int which : order_.of(static_cast<int>(warps_.size()))) {
      Warp& w = warps_[static_cast<std::size_t>(which)];
      w.order = order_.of(32);
      f(w);
    }
  }

  // Block by block: one may be a step ahead of another
  template <class F, class G>
  void in_two(F f, G g) {
    const int threads = warps_.front().places.front().threads, per_block = threads / 32;
    for (const int block : order_.of(static_cast<int>(shared_.size()))) {
      const auto each = [&](auto& part) {
        for (const int which : order_.of(per_block)) {
          Warp& w = warps_[static_cast<std::size_t>(block * per_block + which)];
          w.order = order_.of(32);
          part(w);
        }
      };
      each(f);
      publish();
      each(g);
    }
  }

  void begin(unsigned) { begun_ = true; }

  void receive(int peer, int to, unsigned word, int64 i) {
    if (!begun_) throw std::logic_error("a block sends before the others are there");
    if (!left_.empty()) throw std::logic_error("sums were left for another warp without a barrier behind");
    std::memcpy(reinterpret_cast<char*>(shared_.at(static_cast<std::size_t>(peer)).get()) + 16 + to * 4, &word, 4);
    received_[static_cast<std::size_t>(2 * peer + buffer_of(i))] += 4;
  }

  void wait(int64 i, unsigned bytes) {
    if (parity_of(i) != static_cast<unsigned>(completed_[buffer_of(i)]++ % 2)) throw std::logic_error("wrong parity");
    for (std::size_t block = 0; block < shared_.size(); ++block) {
      unsigned& received = received_[2 * block + static_cast<std::size_t>(buffer_of(i))];
      if (received != bytes) {
        throw std::logic_error("block " + std::to_string(block) + " received " + std::to_string(received) +
                               " bytes in step " + std::to_string(i) + ", expected " + std::to_string(bytes));
      }
      received = 0;
    }
  }

  // Only now do others see what was left for them
  void publish() {
    for (const Left& left : left_) {
      left.address[0] = left.first;
      left.address[1] = left.second;
    }
    left_.clear();
  }

  void end() {
    for (const unsigned received : received_) {
      if (received) throw std::logic_error("bytes that no step waits for");
    }
  }

private:
  struct Left {
    float *address, first, second;
  };

  const Call& call_;
  Order order_;
  std::vector<Left> left_;
  std::vector<std::unique_ptr<Four[]>> shared_;
  std::vector<Warp> warps_;
  std::vector<unsigned> received_;
  int completed_[2] = {0, 0};
  bool begun_ = false;
};

template <class Cell>
class HostGrid {  // of the step kernel
public:
  using State = typename Step<Cell>::State;
  using Warp = HostWarp<State, StepPlace, typename Cell::A>;

  HostGrid(int64 blocks, unsigned seed) : blocks_(blocks), order_(seed) {}

  template <class F>
  void warps(F f) {
    for (const int which : order_.of(static_cast<int>(blocks_) * step_warps)) {
      Warp w;
      for (int lane = 0; lane < 32; ++lane) w.places.push_back({which / step_warps, which % step_warps, lane});
      for (State& state : w.registers) poison(state);
      w.order = order_.of(32);
      f(w);
    }
  }

private:
  int64 blocks_;
  Order order_;
};

}  // namespace fastrnn::gpu
