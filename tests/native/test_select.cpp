// The public interface: every rule, dtype and thread count, and what it refuses. Small enough for sanitizers.
#include <algorithm>
#include <cstring>
#include <thread>
#include <vector>

#include "calls.h"
#include "idsel/select.h"

namespace {

// One thread, three threads and every sample on its own: the same picks with the same scores.
void check_all_rules(Call call) {
    for (const Rule& rule : rules(call.args.tokens)) {
        call.args.rule = rule.id;
        call.params = rule.params;
        call.args.threads = 1;
        run(call);
        check_picks(call);
        Call other = call;
        other.args.threads = 3;
        run(other);
        CHECK(same(call, other));
    }
}

void test_shapes() {
    const int64_t shapes[][4] = {{1, 1, 1, 1},      {1, 2, 3, 2},      {2, 7, 5, 9}, {5, 33, 16, 12}, {1, 130, 70, 40},
                                 {2, 100, 520, 90}, {1, 50, 1100, 50}, {1, 0, 4, 3}, {0, 5, 4, 3}};
    for (const auto& shape : shapes) {
        for (int32_t dtype : {IDSEL_FLOAT32, IDSEL_FLOAT16, IDSEL_BFLOAT16}) {
            for (bool hurt : {false, true}) {
                check_all_rules(make_call(7, shape[0], shape[1], shape[2], shape[3], dtype, hurt));
            }
        }
    }
}

// Lazy loops that share out their work.
void test_sharing() {
    Call call = make_long_call();
    for (const Rule& rule : {Rule{0, {20, 0, 0}}, Rule{1, {0.5, 1}}, Rule{2, {0, 0}}, Rule{4, {1e-6}}}) {
        call.args.rule = rule.id;
        call.params = rule.params;
        call.args.threads = 1;
        run(call);
        CHECK(call.stats[0].path == IDSEL_PATH_LAZY && call.stats[0].similarities > 7000);  // 6,000 are done alone
        Call other = call;
        other.args.threads = 3;
        run(other);
        CHECK(same(call, other));
    }
}

void test_ragged() {
    Call call = make_call(3, 1, 60, 24, 10, IDSEL_FLOAT32, true);
    call.args.batch = 4;
    call.args.k_count = 4;
    call.offsets = {0, 17, 17, 18, 60};
    call.k = {10, 4, 0, 9};
    for (const Rule& rule : rules(60)) {
        call.args.rule = rule.id;
        call.params = rule.params;
        run(call);
        check_picks(call);
    }
}

// A sample by itself has the picks it has in a batch, whichever of the two ways to use threads applies.
void test_batch_mates() {
    Call batch = make_call(11, 3, 40, 32, 20, IDSEL_FLOAT32, false);
    for (const Rule& rule : rules(40)) {
        batch.args.rule = rule.id;
        batch.params = rule.params;
        batch.args.threads = 2;
        run(batch);
        for (int64_t b = 0; b < 3; ++b) {
            Call one = batch;
            one.args.batch = 1;
            one.features32.assign(batch.features32.begin() + b * 40 * 32, batch.features32.begin() + (b + 1) * 40 * 32);
            one.importance.assign(batch.importance.begin() + b * 40, batch.importance.begin() + (b + 1) * 40);
            one.args.threads = 4;
            run(one);
            CHECK(std::equal(one.indices.begin(), one.indices.end(), batch.indices.begin() + b * 20));
        }
    }
}

// Grids of samples take the place of the rule's own; other rules have no use for them.
void test_grids() {
    Call own = make_call(17, 3, 40, 16, 40, IDSEL_FLOAT32, false);
    for (const Rule& rule : rules(40)) {
        own.args.rule = rule.id;
        own.params = rule.params;
        run(own);
        Call given = own;
        if (rule.id == 3) given.params = {rule.params[0], 0, 0, rule.params[3]};
        const auto width = rule.id == 3 ? static_cast<int32_t>(rule.params[2]) : 5;
        given.grids = {1, width, 0, width, -3, width};
        run(given);
        CHECK(same(own, given));
    }
    own.args.rule = 3;
    own.params = {0.9, 0, 0, 2};
    run(own);
    for (const int32_t width : {0, -1, std::numeric_limits<int32_t>::min()}) {
        Call none = own;
        none.params = {0.9, 5, 8, 2};
        none.grids = {5, width, 5, width, 5, width};
        run(none);
        CHECK(same(own, none));
    }
}

// Tokens that are given come first: those that are there, take part and have not been named before.
void test_given() {
    for (const bool hurt : {false, true}) {
        Call call = make_call(19, 3, 40, 16, 12, IDSEL_FLOAT32, hurt);
        call.given = {7, -1, 40, 7, 2, 1000, 5, 0, -9, 3, 9, 9, 9, 9, 39, 38, 37, 36, 35, 34, 33};
        for (const Rule& rule : greedy_rules(40)) {
            call.args.rule = rule.id;
            call.params = rule.params;
            run(call);
            check_picks(call);
            for (int64_t b = 0; b < 3; ++b) {
                std::vector<int64_t> expected;
                for (int64_t i = 0; i < 7; ++i) {
                    const int64_t token = call.given[static_cast<size_t>(7 * b + i)];
                    if (token < 0 || token >= 40) continue;
                    const int64_t at = 40 * b + token;
                    const float* row = &call.features32[static_cast<size_t>(16 * at)];
                    const bool usable = std::all_of(row, row + 16, [](float x) { return std::isfinite(x); }) &&
                                        call.importance[static_cast<size_t>(at)] > -kInf;
                    const bool there = call.mask.empty() || call.mask[static_cast<size_t>(at)] != 0;
                    const bool again = std::find(expected.begin(), expected.end(), token) != expected.end();
                    if (usable && there && !again) expected.push_back(token);
                }
                CHECK(std::equal(expected.begin(), expected.end(), call.indices.begin() + 12 * b));
            }
        }
    }
    Call call = make_call(19, 1, 40, 16, 12, IDSEL_FLOAT32, false);
    call.given = {3};
    call.args.rule = 8;
    call.params = {0.5, 0};
    point(call);
    CHECK(idsel_select(&call.args) == IDSEL_INVALID);
}

// A call on the similarities of the tokens of another, whose features are of +1 and -1 in 16 dimensions; rows lie
// `gap` further apart than they have to.
Call similarities_of(const Call& call, int64_t gap) {
    const int64_t batch = call.args.batch, n = call.args.tokens, stride = n + gap;
    Call other = call;
    other.features32.assign(static_cast<size_t>(batch * n * stride), kNaN);
    for (int64_t b = 0; b < batch; ++b) {
        for (int64_t at = 0; at < n * n; ++at) {
            const float* i = &call.features32[static_cast<size_t>(16 * (b * n + at / n))];
            const float* j = &call.features32[static_cast<size_t>(16 * (b * n + at % n))];
            float dot = 0;
            for (int d = 0; d < 16; ++d) dot += i[d] * j[d];
            other.features32[static_cast<size_t>((b * n + at / n) * stride + at % n)] = dot / 16;
        }
    }
    other.args.features_are_similarities = 1;
    other.args.dim = n;
    other.args.features_token_stride = stride;
    other.args.features_batch_stride = n * stride;
    return other;
}

// Given similarities pick what features pick that have them, whatever threads there are.
void test_similarities() {
    for (const int64_t gap : {0, 3}) {
        Call of_features = make_call(23, 3, 70, 16, 30, IDSEL_FLOAT32, false);
        for (float& value : of_features.features32) value = value < 0 ? -1.0f : 1.0f;
        std::fill_n(&of_features.features32[5 * 16], 16, 0.0f);
        Call of_similarities = similarities_of(of_features, gap);
        for (const Rule& rule : rules(70)) {
            if (rule.id == 7) continue;  // a matrix of its own
            for (Call* call : {&of_features, &of_similarities}) {
                call->args.rule = rule.id;
                call->params = rule.params;
                run(*call);
            }
            CHECK(same(of_features, of_similarities));
            CHECK(of_similarities.stats[0].similarities == 0 && of_similarities.stats[0].norms == 0);
            Call other = of_similarities;
            other.args.threads = 3;
            run(other);
            CHECK(same(other, of_similarities));
        }
    }
}

void test_sort() {
    Call call = make_call(5, 2, 30, 8, 12, IDSEL_FLOAT32, false);
    call.params = {20, 0, 0};
    run(call);
    std::vector<int64_t> expected = call.indices;
    for (int64_t b = 0; b < 2; ++b) std::sort(expected.begin() + b * 12, expected.begin() + (b + 1) * 12);
    call.args.sort = 1;
    run(call);
    CHECK(call.indices == expected);
}

// Calls from several threads at once share nothing.
void test_concurrent_calls() {
    Call call = make_call(9, 2, 80, 64, 40, IDSEL_FLOAT32, false);
    call.params = {20, 0, 0};
    call.args.threads = 2;
    run(call);
    std::vector<std::thread> callers;
    for (int i = 0; i < 4; ++i) {
        callers.emplace_back([&call] {
            Call mine = call;
            run(mine);
            CHECK(same(mine, call));
        });
    }
    for (std::thread& caller : callers) caller.join();
}

template <class Change>
void check_refused(idsel_status status, const char* word, Change&& change) {
    Call call = make_call(1, 2, 5, 4, 3, IDSEL_FLOAT32, false);
    call.params = {20, 0, 0};
    point(call);
    change(call.args);
    CHECK(idsel_select(&call.args) == status);
    if (std::strstr(idsel_last_error(), word) == nullptr) std::fprintf(stderr, "%s\n", idsel_last_error());
    CHECK(std::strstr(idsel_last_error(), word) != nullptr);
    CHECK(call.indices[0] == -7);  // nothing was written
}

void test_refusals() {
    CHECK(idsel_select(nullptr) == IDSEL_INVALID);
    CHECK(idsel_workspace_bytes(nullptr) == -1);
    CHECK(idsel_cuda_plan(nullptr, nullptr) == IDSEL_INVALID);
    check_refused(IDSEL_INVALID, "abi", [](idsel_args& a) { a.abi = 0; });
    check_refused(IDSEL_INVALID, "dim", [](idsel_args& a) { a.dim = 0; });
    check_refused(IDSEL_INVALID, "dtype", [](idsel_args& a) { a.dtype = 3; });
    check_refused(IDSEL_INVALID, "rule", [](idsel_args& a) { a.rule = 99; });
    check_refused(IDSEL_INVALID, "IDSelection has 3 parameters", [](idsel_args& a) { a.param_count = 1; });
    check_refused(IDSEL_INVALID, "params", [](idsel_args& a) { a.params = nullptr; });
    check_refused(IDSEL_INVALID, "k[0]", [](idsel_args& a) { a.k_max = 2; });
    check_refused(IDSEL_INVALID, "k must hold", [](idsel_args& a) { a.k_count = 3; });
    const int32_t count = 1;
    check_refused(IDSEL_INVALID, "k_on_device", [&](idsel_args& a) { a.k_on_device = &count; });
    check_refused(IDSEL_INVALID, "indices", [](idsel_args& a) { a.indices = nullptr; });
    check_refused(IDSEL_INVALID, "features", [](idsel_args& a) { a.features = nullptr; });
    check_refused(IDSEL_UNSUPPORTED, "features_dim_stride", [](idsel_args& a) { a.features_dim_stride = 2; });
    check_refused(IDSEL_UNSUPPORTED, "instruction set", [](idsel_args& a) { a.isa = 77; });
    check_refused(IDSEL_INVALID, "loop", [](idsel_args& a) { a.loop = 4; });
    check_refused(IDSEL_INVALID, "loop", [](idsel_args& a) { a.loop = -1; });
    check_refused(IDSEL_INVALID, "device", [](idsel_args& a) { a.device = 7; });
    check_refused(IDSEL_UNSUPPORTED, "tokens", [](idsel_args& a) { a.tokens = int64_t{1} << 31; });
    const auto as_similarities = [](idsel_args& a) {
        a.features_are_similarities = 1;
        a.dim = a.tokens;
    };
    const auto refused_similarities = [&](idsel_status status, const char* word, void (*change)(idsel_args&)) {
        check_refused(status, word, [&](idsel_args& a) {
            as_similarities(a);
            change(a);
        });
    };
    static const int32_t whole[] = {0, 5, 5};
    refused_similarities(IDSEL_INVALID, "dim 4, tokens 5", [](idsel_args& a) { a.dim = 4; });
    refused_similarities(IDSEL_INVALID, "dtype 1", [](idsel_args& a) { a.dtype = IDSEL_FLOAT16; });
    refused_similarities(IDSEL_INVALID, "cu_seqlens", [](idsel_args& a) { a.cu_seqlens = whole; });
    refused_similarities(IDSEL_INVALID, "MatrixCoverage takes no similarities", [](idsel_args& a) {
        a.rule = 7;
        a.param_count = 0;
    });
    static const int32_t falling[] = {0, 4, 2};
    check_refused(IDSEL_INVALID, "cu_seqlens", [](idsel_args& a) { a.cu_seqlens = falling; });
}

void test_tables() {
    for (int32_t position = 0; const idsel_rule_info* rule = idsel_rule(position); ++position) {
        CHECK(rule->id == position && rule->name != nullptr);
    }
    CHECK(idsel_rule(-1) == nullptr);
    CHECK(idsel_abi() == IDSEL_ABI);
    CHECK(idsel_resolve_isa(IDSEL_ISA_PORTABLE) == IDSEL_ISA_PORTABLE);
    CHECK(idsel_resolve_isa(IDSEL_ISA_AUTO) > 0);
    CHECK(idsel_resolve_isa(77) == -1);
}

}  // namespace

int main() {
    test_shapes();
    test_sharing();
    test_ragged();
    test_batch_mates();
    test_grids();
    test_given();
    test_similarities();
    test_sort();
    test_concurrent_calls();
    test_refusals();
    test_tables();
    std::printf("ok\n");
    return 0;
}
