/* The symbols of Android's libc that ONNX Runtime's Java library for Android x86-64 asks for, handed
 * to those of glibc, so that the library that ships in the app runs on a desktop JVM in the tests.
 * The tests' libonnxruntime is a build for Linux, which knows no NNAPI: nobody calls that one. */
#include <dlfcn.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define BIONIC(name) __asm__(".symver bionic_" #name ", " #name "@LIBC");

void *bionic_malloc(size_t size) { return malloc(size); }
BIONIC(malloc)
void bionic_free(void *block) { free(block); }
BIONIC(free)
void *bionic_realloc(void *block, size_t size) { return realloc(block, size); }
BIONIC(realloc)
size_t bionic_strlen(const char *text) { return strlen(text); }
BIONIC(strlen)
void *bionic_memcpy(void *to, const void *from, size_t size) { return memcpy(to, from, size); }
BIONIC(memcpy)
int bionic_dlclose(void *handle) { return dlclose(handle); }
BIONIC(dlclose)
void bionic___stack_chk_fail(void) { abort(); }
BIONIC(__stack_chk_fail)

extern int __cxa_atexit(void (*function)(void *), void *argument, void *object);
extern void __cxa_finalize(void *object);
int bionic___cxa_atexit(void (*function)(void *), void *argument, void *object) {
    return __cxa_atexit(function, argument, object);
}
BIONIC(__cxa_atexit)
void bionic___cxa_finalize(void *object) { __cxa_finalize(object); }
BIONIC(__cxa_finalize)
int bionic___register_atfork(void (*a)(void), void (*b)(void), void (*c)(void), void *d) {
    return 0;
}
BIONIC(__register_atfork)

void *bionic_nnapi(void *options, unsigned flags) { abort(); }
__asm__(".symver bionic_nnapi, OrtSessionOptionsAppendExecutionProvider_Nnapi@VERS_1.29.0");
