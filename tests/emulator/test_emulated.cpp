// The CUDA engine on the emulator against the CPU engine; buffers of exactly their size, for a sanitizer.
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <string>

#include "calls.h"
#include "cuda/gram_tile.cuh"
// After it, which defines what this needs.
#include "cuda/sm75_fallback.cuh"

namespace {

// Rules without exp, division or root, on features of 1 and -1 with D a power of four: no rounding anywhere.
bool exact(const Rule& rule) {
    return rule.id == 2 || rule.id == 3 || rule.id == 6 || rule.id == 7 || (rule.id == 1 && rule.params[0] == 0.5) ||
           (rule.id == 5 && rule.params[0] == 1);
}

void make_exact(Call& call) {
    Random random(5);
    for (float& value : call.features32) value = random.below(2) != 0 ? 1.0f : -1.0f;
    const uint16_t one = call.args.dtype == IDSEL_BFLOAT16 ? 0x3f80 : 0x3c00;
    for (uint16_t& value : call.features16) value = static_cast<uint16_t>(random.below(2) != 0 ? one : one | 0x8000);
    for (float& value : call.importance) value = static_cast<float>(random.below(9)) / 8.0f;
}

void run_on_both(const Call& call, const Rule& rule, bool compare) {
    Call cuda = call;
    cuda.args.device = IDSEL_CUDA;
    cuda.args.rule = rule.id;
    cuda.params = rule.params;
    run(cuda);
    check_picks(cuda);
    Call again = cuda;
    run(again);  // in another order
    CHECK(same(cuda, again));
    cuda.args.sort = 1;
    run(cuda);
    Call panels = again;
    panels.args.gram_budget = 1;
    run(panels);  // where there are more tokens than a panel has rows
    CHECK(same(panels, again));
    panels.args.sort = 1;
    if (rule.id == 0) run(panels);
    CHECK(rule.id != 0 || same(panels, cuda));
    for (size_t at = 1; at < cuda.indices.size(); ++at) {
        const bool new_sample = at % static_cast<size_t>(cuda.args.k_max) == 0;
        CHECK(new_sample || cuda.indices[at] == -1 || cuda.indices[at - 1] < cuda.indices[at]);
    }
    if (!compare) return;
    Call cpu = call;
    cpu.args.rule = rule.id;
    cpu.params = rule.params;
    run(cpu);
    CHECK(cpu.indices == again.indices);
    for (size_t at = 0; at < cpu.scores.size(); ++at) CHECK(cpu.scores[at] == again.scores[at]);
}

void test_exact(int64_t batch, int64_t n, int64_t dim, int64_t k) {
    for (int32_t dtype : {IDSEL_FLOAT32, IDSEL_FLOAT16, IDSEL_BFLOAT16}) {
        Call call = make_call(1, batch, n, dim, k, dtype, false);
        make_exact(call);
        for (const Rule& rule : greedy_rules(n)) run_on_both(call, rule, exact(rule));
    }
}

void test_hurting(int32_t dtype, int64_t batch, int64_t n, int64_t dim, int64_t k) {
    const Call call = make_call(7, batch, n, dim, k, dtype, true);
    for (const Rule& rule : greedy_rules(n)) run_on_both(call, rule, false);
}

// More tokens than threads.
void test_several_tokens_a_thread() {
    Call call = make_call(1, 1, 260, 16, 3, IDSEL_FLOAT32, false);
    make_exact(call);
    for (const Rule& rule : greedy_rules(260)) run_on_both(call, rule, exact(rule));
}

// Tokens that are given, among them some that are not there, and some twice.
void test_given() {
    Call call = make_call(1, 2, 70, 16, 9, IDSEL_FLOAT32, false);
    make_exact(call);
    call.given = {7, -1, 70, 7, 2, 1000, 5, 0, -9, 69, 9, 9, 9, 9};
    for (const Rule& rule : greedy_rules(70)) run_on_both(call, rule, exact(rule));
}

// Similarities in place of the features that have them, some of which have no direction or are not finite.
void test_similarities(int64_t n, int64_t gram_budget) {
    const int64_t batch = 2, dim = 16, pitch = n + 3;
    Call call = make_call(1, batch, n, dim, n, IDSEL_FLOAT32, false);
    make_exact(call);
    std::fill_n(call.features32.begin() + 3 * dim, dim, 0.0f);
    call.features32[static_cast<size_t>((n + 5) * dim)] = kNaN;
    call.args.device = IDSEL_CUDA;
    call.args.gram_budget = gram_budget;
    Call given = call;
    given.features32.assign(static_cast<size_t>(batch * n * pitch), kNaN);
    for (int64_t row = 0; row < batch * n; ++row) {
        for (int64_t j = 0; j < n; ++j) {
            const float* a = call.features32.data() + row * dim;
            const float* b = call.features32.data() + (row / n * n + j) * dim;
            given.features32[static_cast<size_t>(row * pitch + j)] =
                std::inner_product(a, a + dim, b, 0.0f) / static_cast<float>(dim);
        }
    }
    given.args.features_are_similarities = 1;
    given.args.dim = n;
    given.args.features_batch_stride = n * pitch;
    given.args.features_token_stride = pitch;
    for (const Rule& rule : greedy_rules(n)) {
        if (rule.id == 7) continue;  // it compares no tokens
        call.args.rule = given.args.rule = rule.id;
        call.params = given.params = rule.params;
        run(call);
        run(given);
        CHECK(same(call, given));
    }
}

// Several panels, by several CTAs; `given` tokens first.
void test_panels(int64_t n, int64_t given) {
    Call call = make_call(1, 1, n, 16, 90, IDSEL_FLOAT32, false);
    make_exact(call);
    // Ties, many of them worth nothing; and the best ones are neighbours, so that one CTA has more than it offers.
    for (size_t at = 0; at < call.importance.size(); ++at) {
        call.importance[at] = at < 60 ? static_cast<float>(at % 5) / 8.0f + 1.0f : 0.0f;
    }
    for (int64_t i = 0; i < given; ++i) call.given.push_back(static_cast<int32_t>(i * i % (n + 3)) - 1);
    call.args.device = IDSEL_CUDA;
    for (const Rule& rule : greedy_rules(n)) {
        call.args.rule = rule.id;
        call.params = rule.params;
        call.args.gram_budget = int64_t{1} << 30;
        Call whole = call;
        run(whole);
        call.args.gram_budget = 1;
        Call panels = call;
        run(panels);
        check_picks(panels);
        CHECK(same(panels, whole));
    }
}

// A tile shared out in a cluster, and by one CTA alone.
void test_clusters(int32_t dtype, int64_t dim) {
    const Call call = make_call(11, 1, 70, dim, 9, dtype, false);
    int32_t last = -1;
    for (const Rule& rule : greedy_rules(70)) {
        if (rule.id == last) continue;  // the same kernel: parameters do not matter here
        last = rule.id;
        Call shared = call;
        shared.args.device = IDSEL_CUDA;
        shared.args.rule = rule.id;
        shared.params = rule.params;
        Call alone = shared;
        setenv("IDSEL_EMULATOR_MULTIPROCESSORS", "100", 1);
        run(shared);
        setenv("IDSEL_EMULATOR_MULTIPROCESSORS", "1", 1);
        run(alone);
        unsetenv("IDSEL_EMULATOR_MULTIPROCESSORS");
        CHECK(same(shared, alone));
    }
}

// What older GPUs do instead of an instruction, against the instruction.
void test_redux_by_shuffles() {
    using namespace idsel;
    const auto shfl_xor = [](uint32_t value, int lanes) { return cuda::arch::shfl_xor(value, lanes); };
    const char* failure = emulator::launch(
        [&] {
            Random random(static_cast<uint64_t>(emulator::thread()));
            for (int shift : {0, 15, 31}) {
                const auto key = static_cast<uint32_t>(random.bits()) >> shift;
                CHECK(cuda::sm75::redux_max(key, shfl_xor) == cuda::arch::redux_max(key));
            }
        },
        2, 64, 0);
    CHECK(failure == nullptr);
}

// Keeps the dot products and the norms of a tile.
struct KeptTile {
    float dots[idsel::cuda::kTile][idsel::cuda::kTile];
    float squared_norms[2 * idsel::cuda::kTile];

    void norms(int line, float squared) { squared_norms[line] = squared; }
    void quad(int slab, int row, int column, const idsel::cuda::Float4& sums) {
        std::memcpy(&dots[idsel::cuda::slab_row(slab, row)][column], sums.v, sizeof sums.v);
    }
};

template <class Math>
KeptTile tile_by(const Call& call) {
    using namespace idsel::cuda;
    KernelArgs args{};
    args.dim = static_cast<int32_t>(call.args.dim);
    args.wide_rows = call.args.dim % 8 == 0;
    const auto n = static_cast<int32_t>(call.args.tokens);
    const int tile = 0;
    const auto* features = reinterpret_cast<const typename Math::Element*>(call.features16.data());
    const NeighbourRows<typename Math::Element> rows{features, args.dim, &n, &tile};
    KeptTile kept;
    const char* failure = idsel::emulator::launch(
        [&] {
            auto* buffers = reinterpret_cast<TileBuffers*>(arch::shared_memory());
            gram_tile<Math>(args, rows, rows, ClusterRole{false}, buffers, kept);
        },
        1, kCtaThreads, sizeof(TileBuffers));
    CHECK(failure == nullptr);
    return kept;
}

// Where tensor cores do not take bfloat16, as they do elsewhere: numbers that need no rounding give the same bits.
void test_bfloat16_without_tensor_cores(int64_t dim) {
    using namespace idsel::cuda;
    Call call = make_call(1, 1, 64, dim, 1, IDSEL_BFLOAT16, false);
    Random random(3);
    for (uint16_t& value : call.features16) value = to_bfloat16(static_cast<float>(random.below(9)) - 4.0f);
    const KeptTile with = tile_by<TensorCoreMath<BFloat16>>(call), without = tile_by<FmaMath<BFloat16>>(call);
    CHECK(std::memcmp(&with, &without, sizeof with) == 0);
}

void test_ragged() {
    Call call = make_call(3, 1, 90, 16, 10, IDSEL_FLOAT32, false);
    make_exact(call);
    call.args.batch = 4;
    call.args.k_count = 4;
    call.offsets = {0, 17, 17, 18, 90};
    call.k = {10, 4, 0, 9};
    for (const Rule& rule : greedy_rules(90)) run_on_both(call, rule, exact(rule));
}

// Counts that nobody has checked: the picks are those of counts that fit.
void test_k_on_device() {
    const std::vector<int32_t> counts = {1 << 30, -5, 3, 10};
    Call fitting = make_call(1, 4, 70, 16, 10, IDSEL_FLOAT32, false);
    fitting.args.device = IDSEL_CUDA;
    for (const Rule& rule : greedy_rules(70)) {
        if (rule.id != 0 && rule.id != 6) continue;  // the others get their counts in the same way
        fitting.args.rule = rule.id;
        fitting.params = rule.params;
        Call call = fitting;
        call.args.k_on_device = counts.data();
        fitting.args.k_count = 4;
        fitting.k = {10, 0, 3, 10};
        run(fitting);
        run(call);
        CHECK(same(fitting, call));
        call.args.gram_budget = 1;
        run(call);
        CHECK(same(fitting, call));
    }
}

}  // namespace

// With "gram" or "panels": only what shows whether the machinery of that works. With "odd": only inputs that may lead
// outside of memory, for a sanitizer.
int main(int count, char** words) {
    const std::string part = count > 1 ? words[1] : "";
    for (int64_t given : {0, 150}) {
        if (part == "panels" || part.empty()) test_panels(200, given);
    }
    if (part == "panels" || part.empty()) test_similarities(140, 1);
    if (part == "panels") return 0;
    test_redux_by_shuffles();
    for (int64_t dim : {1, 31, 40, 320, 519}) test_bfloat16_without_tensor_cores(dim);
    test_clusters(IDSEL_BFLOAT16, 300);
    test_hurting(IDSEL_FLOAT32, 1, 9, 8, 9);
    if (part != "odd") test_exact(1, 70, 16, 8);
    test_given();
    test_similarities(70, 0);
    if (part == "gram") return 0;
    test_clusters(IDSEL_FLOAT32, 257);
    test_clusters(IDSEL_FLOAT16, 519);
    test_hurting(IDSEL_BFLOAT16, 1, 9, 700, 9);
    test_hurting(IDSEL_FLOAT16, 1, 9, 519, 4);
    test_hurting(IDSEL_FLOAT32, 1, 1, 1, 1);
    test_hurting(IDSEL_FLOAT32, 1, 0, 4, 3);
    test_ragged();
    test_k_on_device();
    if (part != "odd") {
        test_exact(1, 70, 256, 8);
        test_several_tokens_a_thread();
    }
    std::printf("ok\n");
    return 0;
}
