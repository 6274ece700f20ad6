#include "cpu/channel_model.h"

#include <algorithm>

namespace idsel::cpu {

namespace {

constexpr int64_t kRowsAtOnce = 16;

}  // namespace

ChannelModel::ChannelModel(const MatrixCoverage& rule, Run& run)
    : rule_(rule),
      run_(run),
      gain_(static_cast<size_t>(run.sample.n), kNoKey),
      version_(static_cast<size_t>(run.sample.n)),
      width_(run.sample.dim) {
    if (run.sample.dtype != IDSEL_FLOAT32) widen();
    cover_.resize(static_cast<size_t>(width_));
    // Nothing is known of a gain before it has been summed, so that the first pick asks for all.
    run.similarity.pool().parallel_for(run.sample.n, kRowsAtOnce, [this](int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; ++j) {
            if (run_.competes(j)) sum_gain(j);
        }
    });
}

int64_t ChannelModel::advance(const int64_t* tokens, int64_t count) {
    std::for_each(tokens, tokens + count, [this](int64_t j) { sum_gain(j); });
    return 0;  // no similarities
}

bool ChannelModel::take(const Pick& pick) {
    const float* picked = row(pick.token);
    for (size_t d = 0; d < cover_.size(); ++d) cover_[d] = rule_.cover(cover_[d], picked[d]);
    ++picked_;
    return true;
}

void ChannelModel::sum_gain(int64_t j) {
    const auto at = static_cast<size_t>(j);
    gain_[at] = run_.similarity.kernels().gain(row(j), cover_.data(), width_);
    version_[at] = picked_;
}

const float* ChannelModel::row(int64_t j) const {
    if (wide_.empty()) return static_cast<const float*>(run_.sample.row(j));
    return wide_.data() + j * width_;
}

void ChannelModel::widen() {
    const Sample& sample = run_.sample;
    width_ = (sample.dim + kLanes - 1) / kLanes * kLanes;
    wide_.resize(static_cast<size_t>(sample.n * width_));
    // Channels may change places, in all rows alike.
    const auto to_lanes = run_.similarity.kernels().to_lanes[sample.dtype];
    for (int64_t j = 0; j < sample.n; ++j) to_lanes(sample.row(j), sample.dim, wide_.data() + j * width_);
}

}  // namespace idsel::cpu
