// Keeps 6 of 48 tokens on the CPU, and once more on a GPU if the library was built with CUDA.
#include <idsel/select.h>

#include <cstdio>
#include <cstring>
#include <vector>

#ifdef WITH_CUDA
idsel::Status select_on_gpu(idsel::Args args);  // cuda.cpp
#endif

static int32_t rule_id(const char* name) {
    for (int32_t row = 0; const idsel_rule_info* rule = idsel_rule(row); ++row) {
        if (std::strcmp(rule->name, name) == 0) return rule->id;
    }
    return -1;
}

static int report(const char* device, idsel::Status status, const std::vector<int64_t>& kept) {
    std::printf("%s:", device);
    if (status != IDSEL_OK) std::printf(" %s", idsel::last_error());
    for (const int64_t token : kept) {
        if (status == IDSEL_OK) std::printf(" %lld", static_cast<long long>(token));
    }
    std::printf("\n");
    return status == IDSEL_OK || status == IDSEL_UNSUPPORTED ? 0 : 1;
}

int main() {
    constexpr int64_t tokens = 48, dim = 16, keep = 6;
    std::vector<float> features(tokens * dim), importance(tokens);  // (N, D) and (N,)
    for (int64_t i = 0; i < tokens; ++i) {
        importance[i] = static_cast<float>(i * i % 53) / 53;
        for (int64_t d = 0; d < dim; ++d) {
            features[i * dim + d] = static_cast<float>((i / 3 + 1) * (d + 2) * 31 % 17 - 8);
        }
    }
    std::vector<int64_t> kept(keep);
    std::vector<float> scores(keep);
    const double params[] = {0.5, 1};  // lam and parallel_k, as idsel_rule() names them

    idsel::Args args{};  // zeros: the CPU, float32, no mask, picks in their order
    args.abi = IDSEL_ABI;
    args.rule = rule_id("MMR");
    args.params = params, args.param_count = 2;
    args.features = features.data();
    args.batch = 1, args.tokens = tokens, args.dim = dim;
    args.features_batch_stride = tokens * dim, args.features_token_stride = dim, args.features_dim_stride = 1;
    args.importance = importance.data();
    args.importance_batch_stride = tokens, args.importance_token_stride = 1;
    args.k = &keep, args.k_count = 1, args.k_max = keep;
    args.indices = kept.data(), args.scores = scores.data();
    args.threads = 2;

    int failures = report("CPU", idsel::select(args), kept);
#ifdef WITH_CUDA
    kept.assign(keep, -1);
    failures += report("GPU", select_on_gpu(args), kept);
#endif
    return failures;
}
