#include "cpu/coverage_model.h"

#include <algorithm>

namespace idsel::cpu {

CoverageModel::CoverageModel(const Coverage& rule, Run& run)
    : rule_(rule),
      run_(run),
      cost_model_(run.sample.n, run.sample.dim, run.similarity.pool().threads(), true, run.alone),
      cover_(static_cast<size_t>(run.sample.n), std::numeric_limits<float>::infinity()),
      gain_(static_cast<size_t>(run.sample.n)),
      saliency_(static_cast<size_t>(run.sample.n)),
      version_(static_cast<size_t>(run.sample.n), -1),
      rows_(static_cast<size_t>(run.sample.n)) {
    run.similarity.know_all_norms();
    int64_t takes_part = 0;
    for (int64_t j = 0; j < run.sample.n; ++j) {
        const auto at = static_cast<size_t>(j);
        if (run.competes(j) && !run.similarity.finite(j)) run.demote(j);
        if (!run.competes(j)) continue;
        ++takes_part;
        cover_[at] = 0.0f;
        saliency_[at] = rule.saliency(run.sample.importance[at]);
        lazy_ = lazy_ && rule.rises_with_gain(saliency_[at]);
    }
    // No similarity exceeds 1.
    for (float& gain : gain_) gain = static_cast<float>(takes_part);
    if (!run.similarity.gram_fits_budget()) {
        few_rows_ = std::make_unique<GramRows>(run.similarity);
        gain_ahead_ = gain_;
        summed_at_ = version_;
        worth_.resize(gain_.size());
        if (!lazy_) sum_all();
    } else if (!lazy_) {
        run.similarity.make_gram();
    }
}

int64_t CoverageModel::advance(const int64_t* tokens, int64_t count) {
    std::for_each(tokens, tokens + count, [this](int64_t j) { advance(j); });
    return 0;  // rows count themselves
}

void CoverageModel::advance(int64_t j) {
    const auto at = static_cast<size_t>(j);
    if (few_rows_) {
        sum_ahead(j);
        gain_[at] = gain_ahead_[at];
    } else {
        if (!run_.similarity.has_gram() && !rows_[at]) provide_row(j);
        gain_[at] = gain_of(row(j));
    }
    version_[at] = picked_;
}

float CoverageModel::gain_of(const float* row) const {
    return run_.similarity.kernels().gain(row, cover_.data(), run_.sample.n);
}

void CoverageModel::provide_row(int64_t j) {
    if (!gram_pays(j)) {
        compute_row(j);
        return;
    }
    run_.similarity.make_gram();
    rows_.clear();
    run_.path = rows_computed_ > 0 ? IDSEL_PATH_LAZY_GRAM : IDSEL_PATH_GRAM;
}

bool CoverageModel::take(const Pick& pick) {
    const float* covered = row(pick.token);
    for (int64_t i = 0; i < run_.sample.n; ++i) {
        float& cover = cover_[static_cast<size_t>(i)];
        if (cover < std::numeric_limits<float>::infinity()) cover = rule_.cover(cover, covered[i]);
    }
    ++picked_;
    summed_for_pick_ = 0;
    if (few_rows_ && !lazy_ && !run_.done()) sum_all();
    return true;
}

const float* CoverageModel::row(int64_t j) {
    if (few_rows_) return few_rows_->row(j);
    return run_.similarity.has_gram() ? run_.similarity.whole_row(j, row_) : rows_[static_cast<size_t>(j)].get();
}

void CoverageModel::compute_row(int64_t j) {
    const int64_t n = run_.sample.n;
    std::unique_ptr<float[]> row(new float[static_cast<size_t>(n)]);
    run_.similarity.pool().parallel_for(n, 64, [&](int64_t begin, int64_t end) {
        run_.similarity.row(j, begin, end, &row[static_cast<size_t>(begin)]);
    });
    row[static_cast<size_t>(j)] = run_.similarity.nonzero(j) ? 1.0f : 0.0f;
    run_.similarity.count_dots(n - 1);
    ++rows_computed_;
    rows_[static_cast<size_t>(j)] = std::move(row);
}

// The rows still needed for this pick are at most those whose bound exceeds the best exact priority known.
bool CoverageModel::gram_pays(int64_t j) const {
    float best = kNoKey;
    for (int64_t i = 0; i < run_.sample.n; ++i) {
        if (run_.competes(i) && fresh(i) && key(i) > best) best = key(i);
    }
    int64_t rows = rows_computed_;
    for (int64_t i = 0; i < run_.sample.n; ++i) {
        rows += run_.competes(i) && !rows_[static_cast<size_t>(i)] && key(i) > best;
    }
    // Nothing exact yet: one row tells more.
    if (best == kNoKey && rows_computed_ == 0 && key(j) > best) return false;
    return static_cast<double>(rows) * cost_model_.own_row_cost() > cost_model_.gram_cost();
}

void CoverageModel::sum_ahead(int64_t j) {
    if (summed(j)) return;
    if (few_rows_->kept(j)) {
        sum_kept(j);
    } else {
        sum(rivals(j));
    }
}

// Every gain, as of the present picks.
void CoverageModel::sum_all() {
    std::vector<int64_t> tokens;
    for (int64_t j = 0; j < run_.sample.n; ++j) {
        if (!run_.competes(j)) continue;
        if (few_rows_->kept(j)) {
            sum_kept(j);
        } else {
            tokens.push_back(j);
        }
        if (static_cast<int64_t>(tokens.size()) < few_rows_->most()) continue;
        sum(tokens);
        tokens.clear();
    }
    if (!tokens.empty()) sum(tokens);
    gain_ = gain_ahead_;
    version_ = summed_at_;
}

void CoverageModel::sum_kept(int64_t j) {
    gain_ahead_[static_cast<size_t>(j)] = gain_of(few_rows_->row(j));
    summed_at_[static_cast<size_t>(j)] = picked_;
}

void CoverageModel::sum(const std::vector<int64_t>& tokens) {
    few_rows_->compute(tokens, [this](int64_t j, const float* row) {
        gain_ahead_[static_cast<size_t>(j)] = gain_of(row);
        summed_at_[static_cast<size_t>(j)] = picked_;
    });
    summed_for_pick_ += static_cast<int64_t>(tokens.size());
    for (int64_t j = 0; j < run_.sample.n; ++j) {
        const auto at = static_cast<size_t>(j);
        worth_[at] = run_.competes(j) ? key_of(j, gain_ahead_[at]) : kNoKey;
    }
    few_rows_->keep(tokens, worth_);
}

// Token j and others whose rows are missing and whose bounds exceed the best exact priority: those of the largest
// bounds, half as many as this pick has taken so far. So at most a third of the rows are computed in vain.
std::vector<int64_t> CoverageModel::rivals(int64_t j) const {
    float best = kNoKey;
    for (int64_t i = 0; i < run_.sample.n; ++i) {
        if (run_.competes(i) && summed(i)) best = std::max(best, key_of(i, gain_ahead_[static_cast<size_t>(i)]));
    }
    std::vector<int64_t> tokens;
    for (int64_t i = 0; i < run_.sample.n; ++i) {
        const bool missing = run_.competes(i) && !summed(i) && !few_rows_->kept(i);
        if (missing && i != j && key(i) > best) tokens.push_back(i);
    }
    const int64_t most = std::min(std::max(summed_for_pick_ / 2, kTileRows), few_rows_->most()) - 1;
    if (most < static_cast<int64_t>(tokens.size())) {
        std::nth_element(tokens.begin(), tokens.begin() + most, tokens.end(), [this](int64_t a, int64_t b) {
            const float of_a = key(a), of_b = key(b);
            return of_a > of_b || (of_a == of_b && a < b);
        });
        tokens.resize(static_cast<size_t>(most));
    }
    tokens.push_back(j);
    return tokens;
}

}  // namespace idsel::cpu
