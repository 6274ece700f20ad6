// A call that is shared out among threads, for test_unload.cpp.
#include "calls.h"

extern "C" __attribute__((visibility("default"))) void select_in_plugin() {
    Call call = make_long_call();
    call.args.rule = 1;
    call.params = {0.5, 1};
    call.args.threads = 4;
    run(call);
}
