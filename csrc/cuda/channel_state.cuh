// Coverage of a matrix that is given: a priority is a sum over the token's own row of features, which every pick
// lowers. Lazily as in coverage_state.cuh. A lane adds up every 32nd channel in order, and lanes are added in one tree:
// a smaller term never makes a larger sum.
#pragma once

#include "cuda/coverage_state.cuh"

namespace idsel::cuda {

template <class T>
class ChannelState {
  public:
    IDSEL_DEVICE explicit ChannelState(const Context& context)
        : rule_(*reinterpret_cast<const MatrixCoverage*>(context.args.rule)),
          rows_(features_of<T>(context.args, context.sample)),
          stride_(context.args.features_token_stride),
          dim_(context.args.dim),
          cover_(context.args.cover + context.sample.local * round_up(context.args.dim, 4)) {}

    // Nothing is known of a gain before it has been summed.
    template <class Tokens, class Nearest>
    IDSEL_DEVICE void start(Context& context, Tokens& tokens, Nearest&&) {
        for (int d = arch::thread(); d < dim_; d += kCtaThreads) cover_[d] = 0.0f;
        tokens.for_each([&](int i, int) {
            if (tokens.competes(i)) tokens.key(i) = order_key(INFINITY);
        });
        begin_best(context);
    }

    template <class Tokens>
    IDSEL_DEVICE Best best(Context& context, Tokens& tokens) {
        return best_by_gains(
            context, tokens, [&](int token) { return gain_of(row(token)); }, [](float gain, int) { return gain; });
    }
    IDSEL_DEVICE bool has_priority(uint32_t key) const { return key != 0; }

    template <class Tokens>
    IDSEL_DEVICE void refresh(Context&, Tokens& tokens, int slot, int token) {
        refresh_gain(
            tokens, slot, token, [&](int of) { return gain_of(row(of)); }, [](float gain, int) { return gain; });
    }
    static constexpr float kNoPriority = MatrixCoverage::kNoPriority;

    template <class Tokens>
    IDSEL_DEVICE void after_first(Tokens&, float) {}
    IDSEL_DEVICE bool changes(int, float) const { return true; }

    template <class Tokens>
    IDSEL_DEVICE void absorb(Context&, Tokens& tokens, const Row&, int, int pick, float) {
        const T* picked = row(pick);
        for (int d = arch::thread(); d < dim_; d += kCtaThreads) {
            cover_[d] = rule_.cover(cover_[d], arch::widened(picked[d]));
        }
        tokens.clear_fresh();
        tokens.for_each([&](int i, int) { tokens.key(i) = tokens.competes(i) ? tokens.key(i) : 0; });
        arch::cta_sync();
    }

    static constexpr bool kNeedsBest = false;
    template <class Tokens>
    IDSEL_DEVICE void rank(Tokens&, uint32_t) {}

  private:
    IDSEL_DEVICE const T* row(int token) const { return rows_ + token * stride_; }

    // By a warp, which has 256 channels on their way.
    IDSEL_DEVICE float gain_of(const T* row) const {
        constexpr int kLoads = 8;
        float gain = 0.0f;
        IDSEL_UNROLL_BY(1)
        for (int from = arch::lane(); from < dim_ + arch::lane(); from += kLoads * 32) {
            float x[kLoads], covered[kLoads];
            IDSEL_UNROLL
            for (int at = 0; at < kLoads; ++at) {
                const int d = from + at * 32;
                x[at] = d < dim_ ? arch::widened(row[d]) : 0.0f;  // adds nothing
                covered[at] = cover_[d < dim_ ? d : 0];
            }
            IDSEL_UNROLL
            for (int at = 0; at < kLoads; ++at) gain += rule_.uncovered(x[at], covered[at]);
        }
        IDSEL_UNROLL
        for (int lanes = 16; lanes > 0; lanes /= 2) gain += arch::shfl_xor(gain, lanes);
        return gain;
    }

    MatrixCoverage rule_;
    const T* rows_;
    int64_t stride_;
    int dim_;
    float* cover_;
};

}  // namespace idsel::cuda
