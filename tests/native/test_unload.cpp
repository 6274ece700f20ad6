// Loads a plugin, calls it and unloads it, again and again: nothing may run code that is gone.
#include <dlfcn.h>
#include <unistd.h>

#include "check.h"

int main(int, char** arguments) {
    for (int round = 0; round < 20; ++round) {
        void* plugin = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
        if (plugin == nullptr) std::fprintf(stderr, "%s\n", dlerror());
        CHECK(plugin != nullptr);
        auto* const select = reinterpret_cast<void (*)()>(dlsym(plugin, "select_in_plugin"));
        CHECK(select != nullptr);
        select();
        CHECK(dlclose(plugin) == 0);
    }
    usleep(20000);  // for a helper that was on its way
}
