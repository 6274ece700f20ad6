#include "cuda/plan.h"

#include <type_traits>

#include "rules/dispatch.h"

namespace idsel::cuda {
namespace {

// Hands out parts of the workspace, or only counts where there is none yet.
class Layout {
  public:
    explicit Layout(void* base) : base_(static_cast<unsigned char*>(base)) {}

    template <class T>
    T* take(int64_t count) {
        constexpr int64_t kAlignment = 256;
        const int64_t at = used_;
        used_ += round_up(count * static_cast<int64_t>(sizeof(T)), kAlignment);
        return count == 0 || base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + at);
    }
    int64_t used() const { return used_; }

  private:
    unsigned char* base_;
    int64_t used_ = 0;
};

int64_t run_depth_of(const Plan& plan) { return plan.rule.needs_runs ? ceil_div(plan.gram_width, kTile) * 4 : 0; }

}  // namespace

RuleTraits traits_of(const idsel_args& args) {
    RuleTraits traits{};
    with_rule(GreedyRules{}, args.rule, args.params, [&](const auto& rule) {
        using Rule = std::decay_t<decltype(rule)>;
        traits = {Rule::kState, Rule::kNeedsSimilarities, Rule::kState == State::kCoverage || rule.needs_nearest()};
    });
    return traits;
}

namespace {

// What a sample's similarities may take, in numbers.
int64_t gram_budget_of(const idsel_args& args) {
    constexpr int64_t kMost = int64_t{1} << 34;  // rows of a Gram begin at offsets of 32 bits
    return (args.gram_budget > 0 ? smaller(args.gram_budget, kMost) : IDSEL_GRAM_BUDGET_BYTES) / 4;
}

// Where the whole Gram pays; docs/cuda_engine.md has the reasons.
struct GramPays {
    int64_t batch_up_to;  // tokens of a sample
    int64_t alone_up_to;  // likewise, where a call has fewer tokens than
    int64_t few;
    int64_t ever_up_to;  // likewise, with many picks, or a rule that looks at all pairs
    int64_t many_picks;  // from this part of the tokens on
};
constexpr GramPays kGramPays = {1024, 2048, 16384, kMaxRegisterTokens, 16};

// Asked for; or most of its gains would be summed again and again.
bool gram_always_pays(const idsel_args& args, const RuleTraits& rule) {
    return args.gram_budget > 0 || rule.state == State::kCoverage;
}
bool gram_pays(const idsel_args& args, const RuleTraits& rule) {
    if (gram_always_pays(args, rule)) return true;
    const int64_t n = args.tokens;
    const bool few = larger(1, args.batch) * n < kGramPays.few;
    if (n <= (few ? kGramPays.alone_up_to : kGramPays.batch_up_to)) return true;
    return n <= kGramPays.ever_up_to && (rule.needs_runs || args.k_max * kGramPays.many_picks > n);
}

}  // namespace

Plan::Plan(const idsel_args& args)
    : ragged(args.cu_seqlens != nullptr), tokens(args.tokens), dim(args.dim), rule(traits_of(args)) {
    const int64_t budget = gram_budget_of(args);
    // Lengths of a ragged batch are unknown here: its shorter samples may well have room for their whole Gram.
    const int64_t most = gram_always_pays(args, rule) ? tokens : kGramPays.ever_up_to;
    const bool pays = ragged ? tokens <= most : gram_pays(args, rule);
    // A panel is no smaller than the Gram of as many tokens.
    keeps_gram = !rule.needs_similarities || tokens <= kPanelRows || (pays && tokens <= budget / tokens);
    keeps_short = !keeps_gram && ragged;
    gram_width = !rule.needs_similarities ? 0 : keeps_gram ? round_up(tokens, 4) : kPanelRows;
    if (keeps_short) gram_width = larger(kPanelRows, smaller(most, budget / tokens) / 4 * 4);
    history_depth = rule.state == State::kHistory ? smaller(args.k_max, tokens) : 0;
    most_tiles = larger(1, ceil_div(tokens, kTile));
    const int64_t numbers = gram_width + history_depth + run_depth_of(*this) + kTokenNumbers + 1;
    // A launch of several dense samples puts no more into its workspace than the default budget.
    const int64_t each = round_up(tokens, 4) * numbers * 4;
    samples = larger(1, smaller(args.batch, kMaxSamples));
    if (!ragged) samples = larger(1, smaller(samples, IDSEL_GRAM_BUDGET_BYTES / larger(1, each)));
    // Between the samples of a ragged batch rows are left out, so that each begins with a multiple of four.
    rows = ragged ? round_up(tokens + 6 * (args.batch + 1), 4) : samples * round_up(tokens, 4);
}

int64_t Plan::lay_out(void* base, KernelArgs& to) const {
    Layout layout(base);
    const bool in_memory = !keeps_gram || tokens > kMaxRegisterTokens;
    to.rows = rows;
    to.gram_width = gram_width;
    to.run_depth = run_depth_of(*this);
    to.history_depth = history_depth;
    to.gram = layout.take<float>(rows * gram_width);
    to.square = layout.take<float>(rows);
    to.runs = layout.take<float>(rows * to.run_depth);
    to.numbers = layout.take<float>(in_memory ? rows * kTokenNumbers : 0);
    to.tier = layout.take<Tier>(in_memory ? rows : 0);
    to.history = layout.take<float>(rows * history_depth);
    to.group_states = layout.take<GroupState>(keeps_gram ? 0 : samples);
    const bool sums = !keeps_gram && rule.state == State::kCoverage;
    to.sums = layout.take<float>(sums ? rows + samples * kSumsSlack : 0);
    to.cover = layout.take<float>(rule.state == State::kChannels ? samples * round_up(dim, 4) : 0);
    return layout.used();
}

}  // namespace idsel::cuda
