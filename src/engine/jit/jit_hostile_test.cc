// Guest code that tries to make translated code touch memory that is not the guest's: wild addresses, wrap-around, page
// ends, stale translations, odd stacks, huge counts and bit offsets. Each program runs on the translator and on the
// interpreter: registers and all of memory must be the same at the end. A program ends at HLT; faults do too, in a
// handler.

#include <gtest/gtest.h>

#include <cstring>
#include <thread>

#include "engine/interp/interp_engine.h"
#include "engine/jit/hostile_testing.h"
#include "engine/jit/jit_engine.h"

namespace nacre::engine::jit::hostile {
namespace {

struct Program {
  const char* name;
  const uint8_t* begin;
  const uint8_t* end;
};

}  // namespace

// A list of programs, assembled one after another; each gets a HLT behind it.
#define NACRE_CASES(X)                                                                                                 \
  /* An empty TLB entry must not match an access that begins in the page before the one that it looks like. */         \
  X(stale_entry_read, "mov rax, [0x182000]\n mov rcx, cr3\n mov cr3, rcx\n stc\n mov rax, [0x182ffd]\n adc rbx, 0\n")  \
  X(stale_entry_write,                                                                                                 \
    "mov rax, [0x182000]\n mov [0x182000], rax\n mov rcx, cr3\n mov cr3, rcx\n stc\n mov [0x182ffd], rax\n adc rbx, "  \
    "0\n")                                                                                                             \
  X(before_the_first_page,                                                                                             \
    "mov rsi, cr3\n mov rax, [0]\n mov [0], rax\n mov cr3, rsi\n stc\n mov [0xffd], rax\n adc rbx, 0\n")               \
  X(crossing_with_flags, "stc\n movups xmm0, [0x10cff8]\n movups [0x184ff1], xmm0\n adc rbx, 1\n")                     \
  X(non_canonical_read, "mov rbx, 0x123456789abcdef0\n mov rax, [rbx]\n")                                              \
  X(non_canonical_write, "mov rbx, 0x8000000000000000\n mov [rbx], rbx\n")                                             \
  X(non_canonical_same_index,                                                                                          \
    "mov rax, [0x182000]\n mov rbx, 0x4000000000182000\n stc\n mov rax, [rbx]\n adc rbx, 0\n")                         \
  X(into_the_canonical_hole, "mov rbx, 0x7ffffffffffc\n mov eax, [rbx]\n mov rax, [rbx]\n")                            \
  X(below_the_upper_half, "mov rbx, 0xffff7fffffffffff\n mov al, [rbx]\n")                                             \
  X(wrap_64, "mov rax, [-4]\n mov rbx, [-8]\n mov [-3], rbx\n")                                                        \
  X(wrap_64_by_index, "mov rbx, -16\n mov rcx, 4\n mov rax, [rbx+rcx*8+0x100]\n mov [rbx+rcx*4-2], rax\n")             \
  X(wrap_32_address_size, "mov rbx, 0x1fffffff0\n mov eax, [ebx+0x20]\n mov eax, [ebx+0xc]\n mov rax, [ebx+0xa]\n")    \
  X(end_of_4g, "mov ebx, 0xfffffffc\n mov eax, [rbx]\n mov rax, [rbx]\n")                                              \
  X(segment_base_wraps,                                                                                                \
    "mov ecx, 0xc0000100\n mov edx, -1\n mov eax, -0x1000\n wrmsr\n mov ebx, 0x182008\n mov rax, fs:[rbx]\n"           \
    "mov fs:[rbx+8], rbx\n mov rax, fs:[ebx]\n mov rax, fs:[0]\n mov rbx, 0x7fffffffffffffff\n mov rax, fs:[rbx]\n")   \
  X(vector_at_page_end,                                                                                                \
    "vmovups ymm0, [0x1e0fe0]\n vmovups ymm1, [0x182fe1]\n vmovups [0x182fe3], ymm0\n vmovups ymm2, [0x1e0fe1]\n")     \
  X(misaligned_vector, "movaps xmm0, [0x182008]\n")                                                                    \
  X(state_at_page_end, "fxsave [0x182f80]\n fxrstor [0x182f80]\n fxsave [0x1e0f00]\n")                                 \
  X(bad_fxrstor, "fxrstor [0x182000]\n")                                                                               \
  X(bad_xrstor, "mov eax, -1\n mov edx, eax\n xrstor [0x182000]\n")                                                    \
  X(bad_mxcsr, "mov dword ptr [0x182000], -1\n ldmxcsr [0x182000]\n")                                                  \
  X(bad_fpu_environment, "fldenv [0x182000]\n fld1\n faddp\n fnstenv [0x182100]\n fwait\n")                            \
  X(stack_at_zero, "mov esp, 4\n push rax\n")                                                                          \
  X(stack_at_zero_exact, "xor esp, esp\n push rax\n pop rbx\n")                                                        \
  X(stack_odd, "mov esp, 0x182fff\n push rax\n call 1f\n 1: pop rbx\n pushfq\n pop rcx\n mov rbp, rsp\n leave\n")      \
  X(stack_in_a_hole, "mov esp, 0x1e2000\n push rax\n")                                                                 \
  X(stack_into_the_canonical_hole, "mov rsp, 0x7ffffffffffc\n pop rax\n")                                              \
  X(stack_not_canonical, "mov rsp, 0x1000000000000000\n call 1f\n 1: nop\n")                                           \
  X(leave_not_canonical, "mov rbp, 0x800000000000\n leave\n")                                                          \
  X(push_from_itself, "mov esp, 0x182004\n push [rsp-4]\n push [rsp+3]\n pop rax\n")                                   \
  X(enter_nested, "mov rbp, 0x182100\n mov rsp, 0x182080\n enter 0xffff, 31\n")                                        \
  X(enter_into_a_hole, "mov rbp, 0x182100\n mov rsp, 0x1e2010\n enter 16, 31\n")                                       \
  X(return_not_canonical, "mov rax, 0x5555555555555555\n push rax\n ret\n")                                            \
  X(calls_without_returns, "mov ecx, 20000\n 1: call 2f\n 2: pop rax\n dec ecx\n jnz 1b\n")                            \
  X(returns_without_calls, "mov ecx, 20000\n lea rax, [rip+1f]\n 1: dec ecx\n jz 2f\n push rax\n ret\n 2: nop\n")      \
  X(return_elsewhere, "call 1f\n inc rbx\n jmp 2f\n 1: add qword ptr [rsp], 3\n stc\n ret\n 2: adc rbx, 5\n")          \
  X(return_with_flags, "mov ecx, 99\n 1: call 2f\n adc rbx, rbx\n dec ecx\n jnz 1b\n hlt\n 2: bt ecx, 1\n ret\n")      \
  X(return_not_where_called, "call 1f\n hlt\n 1: mov rax, 0x5555555555555555\n mov [rsp], rax\n ret\n")                \
  X(return_to_changed_code, "call 1f\n mov al, 1\n hlt\n 1: mov rdi, [rsp]\n mov byte ptr [rdi+1], 7\n ret\n")         \
  X(indirect_calls,                                                                                                    \
    "mov ecx, 50\n 1: lea rax, [rip+2f]\n mov edx, ecx\n and edx, 1\n lea rax, [rax+rdx*4]\n call rax\n"               \
    " dec ecx\n jnz 1b\n hlt\n 2: inc rbx\n ret\n add rbx, rcx\n ret\n")                                               \
  X(jump_not_canonical, "mov rax, 0xffff7ffffffffff0\n jmp rax\n")                                                     \
  X(jump_to_nothing, "mov eax, 0x1f0000\n jmp rax\n")                                                                  \
  X(jump_to_one, "mov eax, 1\n jmp rax\n")                                                                             \
  X(copy_huge, "mov rcx, -1\n mov esi, 0x182001\n mov edi, 0x1dff03\n rep movsb\n")                                    \
  X(copy_overlapping, "mov ecx, 0x1800\n mov esi, 0x182ff7\n lea rdi, [rsi+1]\n rep movsb\n")                          \
  X(copy_overlapping_quads, "mov ecx, 0x300\n mov esi, 0x182ffd\n lea rdi, [rsi+3]\n rep movsq\n")                     \
  X(copy_backwards, "std\n mov ecx, 0x400\n mov esi, 0x184ffd\n lea rdi, [rsi+3]\n rep movsd\n cld\n")                 \
  X(copy_narrow_count, "mov rcx, 0x100000010\n mov rsi, 0x100182000\n mov rdi, 0x100184ffc\n addr32 rep movsd\n")      \
  X(copy_from_the_end, "mov ecx, 0x40\n mov rsi, -0x20\n mov edi, 0x184000\n rep movsb\n")                             \
  X(store_to_the_end, "mov ecx, 0x40\n mov rdi, -0x41\n mov eax, 0x5a\n rep stosw\n")                                  \
  X(store_huge_quads, "mov rcx, 0x2000000000000001\n mov edi, 0x1deff9\n rep stosq\n")                                 \
  X(store_over_itself, "lea rdi, [rip+1f]\n mov ecx, 3\n mov al, 0x90\n rep stosb\n 1: ud2\n nop\n nop\n")             \
  X(scan_huge, "mov rcx, -1\n mov edi, 0x1dfff8\n mov rax, 0x3456789\n repne scasq\n")                                 \
  X(compare_over_end, "mov rcx, -1\n mov esi, 0x1dff00\n mov edi, esi\n repe cmpsb\n")                                 \
  X(bit_far, "mov rax, 0x7fffffffffffffff\n mov ebx, 0x182000\n bt [rbx], rax\n")                                      \
  X(bit_far_write, "mov rax, 0x4000000000\n mov ebx, 0x182000\n bts [rbx], rax\n")                                     \
  X(bit_before,                                                                                                        \
    "mov rax, -1\n mov ebx, 0x182000\n bts [rbx], rax\n lock btc [rbx], eax\n mov ecx, 0x80000000\n bt [rbx], ecx\n")  \
  X(bit_crossing, "mov eax, 65\n mov ebx, 0x182ff1\n stc\n btc [rbx], rax\n adc rbx, 0\n")                             \
  X(bit_to_zero, "mov rbx, 0x182000\n mov rax, -0xc10000\n bts [rbx], rax\n bts [rbx-1], rax\n")                       \
  X(bit_narrow_address, "mov rbx, 0x700182000\n mov rax, 0x100\n bts [ebx], rax\n btr fs:[ebx], rax\n")                \
  X(high_bytes,                                                                                                        \
    "mov eax, 0x1234\n mov edi, 0x182fff\n mov [rdi], ah\n add ch, [rdi+1]\n xchg bh, [rdi]\n cmpxchg [rdi], dh\n"     \
    "mov rdi, -1\n mov [rdi], ah\n mov rdi, 0x1e1000\n mov bh, [rdi]\n")                                               \
  X(exchange_16_crossing, "mov edi, 0x182ff8\n lock cmpxchg16b [rdi]\n")                                               \
  X(exchange_16, "mov edi, 0x182ff0\n lock cmpxchg16b [rdi]\n mov edi, 0x182ffc\n lock cmpxchg8b [rdi]\n")             \
  X(locked_crossing_into_a_hole, "mov edi, 0x1e0ffd\n lock add [rdi], rdi\n")                                          \
  X(read_only, "mov edi, 0x1b0ffc\n mov [rdi], edi\n mov [rdi], rdi\n")                                                \
  X(nothing_there, "mov rax, [0x1f0000]\n mov [0x1f0ff8], rax\n lock add [0x1f0008], eax\n movups xmm0, [0x1f0ffc]\n") \
  X(masked_move,                                                                                                       \
    "vpcmpeqd ymm0, ymm0, ymm0\n vpsrldq ymm0, ymm0, 12\n vmaskmovps ymm1, ymm0, [0x1e0ff0]\n"                         \
    "vmaskmovps [0x182ff4], ymm0, ymm1\n vmaskmovps ymm2, ymm0, [0x1e0ffc]\n")                                         \
  X(gather_wild,                                                                                                       \
    "vpcmpeqd ymm2, ymm2, ymm2\n vmovdqu ymm1, [0x182000]\n mov ebx, 0x182000\n vpgatherdd ymm0, [rbx+ymm1*8], "       \
    "ymm2\n")                                                                                                          \
  X(masked_bytes, "pcmpeqb xmm0, xmm0\n mov edi, 0x1e0ff8\n maskmovdqu xmm1, xmm0\n")                                  \
  X(divide_by_zero, "xor ecx, ecx\n div rcx\n")                                                                        \
  X(divide_overflow, "mov ecx, 1\n mov edx, 1\n div rcx\n")                                                            \
  X(x87_unmasked, "mov word ptr [0x182000], 0x340\n fldcw [0x182000]\n fldz\n fld1\n fdivrp\n fwait\n")                \
  X(sse_unmasked, "mov dword ptr [0x182000], 0\n ldmxcsr [0x182000]\n xorps xmm0, xmm0\n divss xmm0, xmm0\n")          \
  X(code_in_two_pages, /* the second page of an instruction becomes another one */                                     \
    "mov edi, 0x182ffb\n mov dword ptr [rdi], 0x1111b848\n mov word ptr [rdi+4], 0x4444\n mov dword ptr [rdi+6], "     \
    "0x55555555\n"                                                                                                     \
    "mov byte ptr [rdi+10], 0xc3\n call rdi\n mov rbx, rax\n call rdi\n"                                               \
    "mov dword ptr [0x184001], 0x77777777\n mov dword ptr [0x184000], 0x99887766\n mov dword ptr [0x184004], "         \
    "0xc3c3c3c3\n"                                                                                                     \
    "mov qword ptr [0x4c18], 0x184007\n invlpg [0x183000]\n call rdi\n mov rdx, rax\n"                                 \
    "mov qword ptr [0x4c18], 0\n invlpg [0x183000]\n call rdi\n")                                                      \
  X(code_moves_away,                                                                                                   \
    "mov dword ptr [0x182000], 0xc300b0\n mov dword ptr [0x184000], 0xc301b0\n mov edi, 0x182000\n call rdi\n mov "    \
    "ebx, eax\n"                                                                                                       \
    "mov qword ptr [0x4c10], 0x184007\n invlpg [0x182000]\n call rdi\n mov ecx, eax\n"                                 \
    "mov byte ptr [0x184001], 7\n call rdi\n mov edx, eax\n mov qword ptr [0x4c10], 0x1f0007\n mov rax, cr3\n mov "    \
    "cr3, rax\n"                                                                                                       \
    "mov qword ptr [0x4c10], 0x2000007\n invlpg [0x182000]\n call rdi\n")                                              \
  X(own_page_moves_away,                                                                                               \
    "mov esi, 0x100000\n mov edi, 0x184000\n mov ecx, 512\n rep movsq\n lea rax, [rip+1f]\n"                           \
    "lea rbx, [rax+0x84000]\n mov dword ptr [rbx+1], 0x77\n mov qword ptr [0x4800], 0x184007\n invlpg [0x100000]\n"    \
    "1: mov eax, 0x55\n")                                                                                              \
  X(code_by_an_alias, /* two addresses of one page: written by one, run by the other */                                \
    "mov edi, 0x1d0000\n mov ebx, 0x1c0000\n mov dword ptr [rdi], 0xc302b0\n call rbx\n mov ecx, eax\n"                \
    "mov byte ptr [0x1d4001], 9\n call rbx\n mov edx, eax\n mov byte ptr [0x1d8001], 11\n call rdi\n")                 \
  X(table_as_data, /* the page table of the stack is overwritten by the stack's neighbour */                           \
    "push 1\n mov eax, 0\n mov [0x4bf8], rax\n invlpg [0x17f000]\n push 2\n")                                          \
  X(table_into_nothing,                                                                                                \
    "mov rax, [0x182000]\n mov rbx, 0xffffffffff007\n mov [0x4c10], rbx\n mov rcx, cr3\n mov cr3, rcx\n mov rax, "     \
    "[0x182000]\n")                                                                                                    \
  X(descriptor_tables_wild,                                                                                            \
    "mov qword ptr [0x182000], -1\n mov qword ptr [0x182008], -1\n lgdt [0x182000]\n mov eax, 0x2b\n mov ds, eax\n")   \
  /* Look-ups in tables: the TLB entry is predicted (prediction.h). */                                                 \
  X(predicted_right,                                                                                                   \
    "mov ebx, 0x182000\n 1: mov edx, ecx\n and edx, 255\n add rax, [rbx+rdx*8]\n "                                     \
    "mov [rbx+rdx*8+2048], rax\n inc ecx\n cmp ecx, 3000\n jb 1b\n")                                                   \
  X(predicted_alternating,                                                                                             \
    "mov ebx, 0x182000\n 1: mov edx, ecx\n imul edx, edx, 509\n and edx, 1023\n add rax, [rbx+rdx*8]\n "               \
    "xor [rbx+rdx*8], rax\n inc ecx\n cmp ecx, 3000\n jb 1b\n")                                                        \
  X(predicted_everywhere,                                                                                              \
    "mov ebx, 0x200000\n mov edi, 7\n 1: imul rdi, rdi, 0x5851f42d\n inc rdi\n mov rdx, rdi\n "                        \
    "shr rdx, 20\n imul edx, edx, 24\n and edx, 0x1fffff\n test edx, edx\n xor eax, [rbx+rdx*4]\n "                    \
    "inc ecx\n cmp ecx, 60000\n jb 1b\n")                                                                              \
  X(predicted_then_unmapped,                                                                                           \
    "mov ebx, 0x182000\n mov ecx, 20\n 3: call 1f\n dec ecx\n jnz 3b\nmov qword ptr [0x4c10], 0\n "                    \
    "invlpg [rbx]\n call 1f\n hlt\n1: mov edx, ecx\n add rax, [rbx+rdx*8]\n ret\n")                                    \
  X(predicted_then_moved,                                                                                              \
    "mov ebx, 0x182000\n mov ecx, 20\n 3: call 1f\n dec ecx\n jnz 3b\nmov qword ptr [0x4c10], 0x184007\n "             \
    "invlpg [rbx]\n call 1f\n mov qword ptr [0x4c10], 0x185007\n mov rdi, cr3\n mov cr3, rdi\n call 1f\n "             \
    "mov qword ptr [0x4c10], 0\n mov cr3, rdi\n call 1f\n hlt\n1: mov edx, ecx\n add rax, [rbx+rdx*8]\n "              \
    "ret\n")                                                                                                           \
  X(predicted_then_read_only,                                                                                          \
    "mov ebx, 0x182000\n mov ecx, 20\n 3: call 1f\n dec ecx\n jnz 3b\nmov qword ptr [0x4c10], 0x182005\n "             \
    "invlpg [rbx]\n call 1f\n hlt\n1: mov edx, ecx\n mov [rbx+rdx*8], rax\n add rsi, 1\n ret\n")                       \
  X(predicted_read_only,                                                                                               \
    "mov ebx, 0x182000\n mov ecx, 20\n 3: call 1f\n dec ecx\n jnz 3b\nmov ebx, 0x1b1000\n call 1f\n "                  \
    "hlt\n1: mov edx, ecx\n mov [rbx+rdx*8], rax\n add rsi, 1\n ret\n")                                                \
  X(predicted_crossing,                                                                                                \
    "mov ebx, 0x182000\n mov ecx, 20\n 3: call 1f\n dec ecx\n jnz 3b\nmov ebx, 0x182ffc\n xor ecx, ecx\n "             \
    "call 1f\n mov ebx, 0x182001\n call 1f\n mov ebx, 0x181ffc\n call 1f\n mov ebx, 0x181fff\n call 1f\n "             \
    "hlt\n1: mov edx, ecx\n add rax, [rbx+rdx*8]\n ret\n")                                                             \
  X(predicted_crossing_writes,                                                                                         \
    "mov ebx, 0x182000\n mov ecx, 20\n 3: call 1f\n dec ecx\n jnz 3b\nmov ebx, 0x182ffc\n xor ecx, ecx\n "             \
    "call 1f\n mov ebx, 0x182001\n call 1f\n mov ebx, 0x181ffc\n call 1f\n mov ebx, 0x1e1ff9\n call 1f\n "             \
    "hlt\n1: mov edx, ecx\n mov [rbx+rdx*8], rax\n add rsi, 1\n ret\n")                                                \
  X(predicted_crossing_into_a_hole,                                                                                    \
    "mov ebx, 0x182000\n mov ecx, 20\n 3: call 1f\n dec ecx\n jnz 3b\nmov ebx, 0x1e0000\n call 1f\n "                  \
    "mov ebx, 0x1e0ffc\n xor ecx, ecx\n call 1f\n hlt\n1: mov edx, ecx\n add rax, [rbx+rdx*8]\n ret\n")                \
  X(predicted_crossing_from_a_hole,                                                                                    \
    "mov ebx, 0x182000\n mov ecx, 20\n 3: call 1f\n dec ecx\n jnz 3b\nmov ebx, 0x1e2000\n call 1f\n "                  \
    "mov ebx, 0x1e1ffc\n xor ecx, ecx\n call 1f\n hlt\n1: mov edx, ecx\n add rax, [rbx+rdx*8]\n ret\n")                \
  X(predicted_page_zero,                                                                                               \
    "mov ebx, 0x182000\n mov ecx, 20\n 3: call 1f\n dec ecx\n jnz 3b\nxor ebx, ebx\n call 1f\n "                       \
    "mov ecx, 0x1ff\n call 1f\n sub rbx, 8\n call 1f\n mov ecx, 0\n call 1f\n hlt\n1: mov edx, ecx\n "                 \
    "add rax, [rbx+rdx*8]\n ret\n")                                                                                    \
  X(predicted_empty_entry, /* of a page that is mapped elsewhere */                                                    \
    "mov ebx, 0x1d5000\n mov ecx, 20\n 3: call 1f\n dec ecx\n jnz 3b\n "                                               \
    "invlpg [rbx]\n mov ebx, 0xd7000\n call 1f\n hlt\n"                                                                \
    "1: mov edx, ecx\n add rax, [rbx+rdx*8]\n ret\n")                                                                  \
  X(predicted_with_flags, /* begins in the page before the predicted one, which is not before it in RAM */             \
    "mov ebx, 0x1d4000\n mov ecx, 20\n 3: call 1f\n dec ecx\n jnz 3b\n mov ebx, 0x1d3ffc\n call 1f\n hlt\n"            \
    "1: stc\n mov edx, ecx\n mov rdi, [rbx+rdx*8]\n adc rax, rdi\n ret\n")                                             \
  X(predicted_not_canonical,                                                                                           \
    "mov ebx, 0x182000\n mov ecx, 20\n 3: call 1f\n dec ecx\n jnz 3b\ninvlpg [rbx]\n "                                 \
    "mov rbx, 0x8000000000080000\n call 1f\n hlt\n1: mov edx, ecx\n add rax, [rbx+rdx*8]\n ret\n")                     \
  X(predicted_not_canonical_write,                                                                                     \
    "mov ebx, 0x182000\n mov ecx, 20\n 3: call 1f\n dec ecx\n jnz 3b\ninvlpg [rbx]\n "                                 \
    "mov rbx, 0x8000000000080000\n call 1f\n hlt\n1: mov edx, ecx\n mov [rbx+rdx*8], rax\n add rsi, 1\n "              \
    "ret\n")                                                                                                           \
  X(predicted_not_canonical_read_only,                                                                                 \
    "mov ebx, 0x182000\n mov ecx, 20\n 3: call 1f\n dec ecx\n jnz 3b\nmov ebx, 0x1b0000\n call 1f\n "                  \
    "mov rbx, 0x80000000000b3000\n call 1f\n hlt\n1: mov edx, ecx\n mov [rbx+rdx*8], rax\n add rsi, 1\n "              \
    "ret\n")                                                                                                           \
  X(predicted_not_canonical_push,                                                                                      \
    "mov ebx, 0x182000\n mov ecx, 20\n 3: call 1f\n dec ecx\n jnz 3b\ninvlpg [rbx]\n "                                 \
    "mov rbx, 0x8000000000080000\n call 1f\n hlt\n 1: mov edx, ecx\n push [rbx+rdx*8]\n pop rdi\n "                    \
    "add rax, rdi\n ret\n")                                                                                            \
  X(predicted_not_canonical_vector,                                                                                    \
    "mov ebx, 0x182000\n mov ecx, 20\n 3: call 1f\n dec ecx\n jnz 3b\ninvlpg [rbx]\n "                                 \
    "mov rbx, 0x8000000000080000\n call 1f\n hlt\n 1: mov edx, ecx\n movdqu xmm0, [rbx+rdx*8]\n "                      \
    "paddq xmm1, xmm0\n add rax, 1\n ret\n")                                                                           \
  X(predicted_not_canonical_stack_segment,                                                                             \
    "mov ebp, 0x182000\n mov ecx, 20\n 3: call 1f\n dec ecx\n jnz 3b\n invlpg [rbp]\n "                                \
    "mov rbp, 0x8000000000080000\n call 1f\n hlt\n 1: mov edx, ecx\n add rax, [rbp+rdx*8]\n ret\n")                    \
  X(predicted_not_canonical_high_byte,                                                                                 \
    "mov ebx, 0x182000\n mov ecx, 20\n 3: call 1f\n dec ecx\n jnz 3b\ninvlpg [rbx]\n "                                 \
    "mov rbx, 0x8000000000080000\n call 1f\n hlt\n 1: mov edx, ecx\n mov ah, [rbx+rdx*8]\n "                           \
    "add rax, [rbx+rdx*8+8]\n ret\n")                                                                                  \
  X(predicted_not_canonical_group,                                                                                     \
    "mov ebx, 0x182000\n mov ecx, 20\n 3: call 1f\n dec ecx\n jnz 3b\ninvlpg [rbx]\n "                                 \
    "mov rbx, 0x8000000000080000\n call 1f\n hlt\n 1: mov edx, ecx\n mov rsi, [rbx+rdx*8+16]\n "                       \
    "add rax, [rbx+rdx*8]\n mov [rbx+rdx*8+8], rax\n add rax, rsi\n ret\n")                                            \
  X(predicted_group_at_the_end,                                                                                        \
    "mov ebx, 0x182000\n mov ecx, 20\n 3: call 1f\n dec ecx\n jnz 3b\nmov ebx, 0x182fd8\n mov ecx, 4\n "               \
    "3: call 1f\n dec ecx\n jns 3b\n mov ebx, 0x1e0fd8\n mov ecx, 0\n 3: call 1f\n inc ecx\n jmp 3b\n "                \
    "1: mov edx, ecx\n mov rsi, [rbx+rdx*8+16]\n add rax, [rbx+rdx*8]\n mov [rbx+rdx*8+8], rax\n "                     \
    "add rax, rsi\n ret\n")                                                                                            \
  X(predicted_narrow_address,                                                                                          \
    "mov ebx, 0x182000\n mov ecx, 20\n 3: call 1f\n dec ecx\n jnz 3b\n mov ebx, 0xfffffff0\n "                         \
    "mov ecx, 0x30400\n call 1f\n mov ecx, 2\n call 1f\n hlt\n 1: mov edx, ecx\n add rax, [ebx+edx*8]\n "              \
    "ret\n")                                                                                                           \
  X(predicted_code_page,                                                                                               \
    "lea rbx, [rip+1f]\n mov rax, [rbx+256]\n mov ecx, 40\n 3: call 1f\n dec ecx\n jnz 3b\n "                          \
    "mov ebx, 0x182000\n call 1f\n lea rbx, [rip+1f]\n mov eax, 0xc3c3c3c3\n xor ecx, ecx\n call 1f\n "                \
    "call 1f\n hlt\n1: mov edx, ecx\n mov [rbx+rdx*8], rax\n add rsi, 1\n ret\n")                                      \
  X(no_descriptors, "mov qword ptr [0x182000], 0\n mov qword ptr [0x182008], 0\n lidt [0x182000]\n ud2\n")

#define NACRE_ASSEMBLE(name, text)                                                                            \
  asm(".pushsection .rodata\n .intel_syntax noprefix\n .globl nacre_hostile_" #name "\n nacre_hostile_" #name \
      ":\n" text " hlt\n .globl nacre_hostile_" #name "_end\n nacre_hostile_" #name                           \
      "_end:\n .att_syntax\n .popsection\n");                                                                 \
  extern "C" const uint8_t nacre_hostile_##name[], nacre_hostile_##name##_end[];
NACRE_CASES(NACRE_ASSEMBLE)

namespace {

#define NACRE_ENTRY(name, text) {#name, nacre_hostile_##name, nacre_hostile_##name##_end},
const Program kPrograms[] = {NACRE_CASES(NACRE_ENTRY)};

std::unique_ptr<Engine> Jit(const JitStress& stress = {}) {
  return std::move(*CreateJitEngine({.code_cache_bytes = 4 * kMiB, .debug = {.stress = stress}}));
}

struct Ending {
  ExitReason reason;
  x86::CpuState state;
};

Ending RunProgram(Machine& machine, const Program& program, x86::CpuState state) {
  machine.Reset(1);
  machine.Put(state.rip, {program.begin, program.end});
  machine.vcpu().Import(state);
  Ending ending;
  ending.reason = machine.vcpu().Run();
  machine.vcpu().Export(ending.state);
  return ending;
}

/// A branch to a non-canonical address faults at the target on the translator, at the branch on hardware: both are #GP.
bool FaultsAtTarget(std::string_view name) {
  return name == "return_not_canonical" || name == "jump_not_canonical" || name == "return_not_where_called";
}

/// Memory but for what the engines may do differently: accessed and dirty bits, arithmetic flags in a fault's frame.
void ExpectSameMemory(Machine& reference, Machine& translated, bool same_frame) {
  const auto* want = reinterpret_cast<const uint64_t*>(reference.memory().host_base());
  const auto* have = reinterpret_cast<const uint64_t*>(translated.memory().host_base());
  for (uint64_t i = 0; i < kRam / 8; ++i) {
    const uint64_t address = 8 * i;
    uint64_t mask = ~uint64_t{0};
    if (address >= kPageTables && address < kIdt) mask = ~uint64_t{0x60};
    if (!same_frame && address >= kFaultStack - 48 && address < kFaultStack) continue;
    if (address == kFaultStack - 24) mask = ~x86::rflags::kArithmetic;
    ASSERT_EQ(want[i] & mask, have[i] & mask) << "at " << std::hex << address;
  }
}

class EveryHostileProgram : public testing::TestWithParam<Program> {};

TEST_P(EveryHostileProgram, EndsAsOnTheInterpreter) {
  const JitStress fast, compact{.compact = true}, tiny_tlb{.tiny_tlb = true};
  for (const auto& [mode, stress] :
       {std::pair{Mode::kKernel64, &fast}, std::pair{Mode::kKernel64, &compact}, std::pair{Mode::kKernel64, &tiny_tlb},
        std::pair{Mode::kUser64, &fast}, std::pair{Mode::kUser64, &compact}}) {
    SCOPED_TRACE(mode == Mode::kUser64 ? "user" : "kernel");
    SCOPED_TRACE(stress == &fast ? "fast code" : stress == &compact ? "compact code" : "tiny TLB");
    Machine reference(interp::CreateInterpEngine()), translated(Jit(*stress));
    const Ending expected = RunProgram(reference, GetParam(), StartState(mode));
    const Ending got = RunProgram(translated, GetParam(), StartState(mode));
    EXPECT_EQ(translated.Statistic(kWildAccesses), 0u);
    EXPECT_EQ(expected.reason, got.reason) << translated.vcpu().error();
    EXPECT_EQ(expected.state.rip, got.state.rip) << std::hex << expected.state.rip << " " << got.state.rip;
    EXPECT_EQ(expected.state.cr2, got.state.cr2);
    for (unsigned i = 0; i < 16; ++i) EXPECT_EQ(expected.state.gpr[i], got.state.gpr[i]) << "register " << i;
    EXPECT_EQ(std::memcmp(&expected.state.xsave, &got.state.xsave, 512), 0) << "vector registers";
    ExpectSameMemory(reference, translated, !FaultsAtTarget(GetParam().name));
  }
}

INSTANTIATE_TEST_SUITE_P(Jit, EveryHostileProgram, testing::ValuesIn(kPrograms),
                         [](const auto& test) { return std::string(test.param.name); });

/// Runs until stopped from another thread; fails the test instead of hanging it.
void ExpectStops(Machine& machine, const x86::CpuState& state) {
  machine.vcpu().Import(state);
  std::thread stopper([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    machine.vcpu().Request(kRequestStop);
  });
  const ExitReason reason = machine.vcpu().Run();
  stopper.join();
  x86::CpuState ended;
  machine.vcpu().Export(ended);
  EXPECT_EQ(reason, ExitReason::kStop) << std::hex << "at " << ended.rip << ", CR2 " << ended.cr2;
}

// Loops that never jump backwards: control runs over the end of the address space to its start.
TEST(JitHostile, ALoopAcrossTheEndOfTheAddressSpaceCanBeStopped) {
  for (const bool wide : {false, true}) {
    SCOPED_TRACE(wide);
    Machine machine(Jit());
    machine.Reset(1);
    // From page 0 a forward jump to the last bytes, mapped to RAM below 6 MiB; from there control falls to address 0.
    const uint8_t jump32[] = {0xe9, 0xef, 0xff, 0xff, 0xff};                          // to 0xfffffff4
    const uint8_t jump64[] = {0x48, 0xc7, 0xc0, 0xf4, 0xff, 0xff, 0xff, 0xff, 0xe0};  // mov rax, -12; jmp rax
    machine.Put(0, wide ? std::span<const uint8_t>(jump64) : jump32);
    const std::vector<uint8_t> nops(16, 0x90);
    machine.Put(6 * kMiB - 16, nops);
    x86::CpuState state = StartState(wide ? Mode::kKernel64 : Mode::kKernel32);
    state.rip = 0;
    ExpectStops(machine, state);
  }
}

TEST(JitHostile, AConditionalLoopAcrossTheEndOfTheAddressSpaceCanBeStopped) {
  Machine machine(Jit());
  machine.Reset(1);
  const uint8_t jump[] = {0xe9, 0xef, 0xff, 0xff, 0xff};  // to 0xfffffff4
  machine.Put(0, jump);
  std::vector<uint8_t> code(12, 0x90);
  code[10] = 0x75;  // JNE, never taken, ends at the last byte
  code[11] = 0x80;
  machine.Put(6 * kMiB - 12, code);
  x86::CpuState state = StartState(Mode::kKernel32);
  state.rip = 0;
  state.rflags |= x86::rflags::kZf;
  ExpectStops(machine, state);
}

// A page of code at more linear addresses than the translator has ids for; then other code stands at some of them.
// Links made while the table of ids was full must not lead to the old code.
TEST(JitHostile, MoreCodePagesThanIdsKeepLinksRight) {
  constexpr uint64_t kPresentWritable = 3, kBase = kGiB, kDirectory = 0x800000, kTable = 0x801000, kOld = 0x802000,
                     kNew = 0x803000;
  constexpr unsigned kPages = 40000, kChanged = 300;
  Machine machine(std::move(*CreateJitEngine({.code_cache_bytes = 64 * kMiB})));
  machine.Reset(1);
  machine.Put64(0x2000 + 8 * (kBase / kGiB), kDirectory | kPresentWritable);
  for (unsigned i = 0; i < 512; ++i) {
    machine.Put64(kDirectory + 8 * i, kTable | kPresentWritable);
    machine.Put64(kTable + 8 * i, kOld | kPresentWritable);
  }
  // inc rax; dec ecx; jz to 0x40; jmp to the start of the next page
  const uint8_t old_code[] = {0x48, 0xff, 0xc0, 0xff, 0xc9, 0x0f, 0x84, 0x35, 0, 0, 0, 0xe9, 0xf0, 0x0f, 0, 0};
  const uint8_t halt[] = {0xf4};
  machine.Put(kOld, old_code);
  machine.Put(kOld + 0x40, halt);
  machine.Put(kNew, halt);
  const auto run = [&](unsigned first, unsigned count) {
    x86::CpuState state = StartState(Mode::kKernel64);
    state.rip = kBase + first * kPageSize;
    state.gpr[x86::kRax] = 0;
    state.gpr[x86::kRcx] = count;
    machine.vcpu().Import(state);
    EXPECT_EQ(machine.vcpu().Run(), ExitReason::kHalted);
    machine.vcpu().Export(state);
    return state;
  };
  x86::CpuState ended = run(0, kPages);
  EXPECT_EQ(ended.gpr[x86::kRax], kPages);
  EXPECT_EQ(ended.rip, kBase + (kPages - 1) * kPageSize + 0x41);
  machine.Put64(kTable + 8 * kChanged, kNew | kPresentWritable);
  for (unsigned first = 0; first < kPages - 512; first += 333) {
    const unsigned stop = static_cast<unsigned>(AlignUp(first + 512 - kChanged, 512)) - 512 + kChanged;
    ended = run(first, 1000);
    EXPECT_EQ(ended.rip, kBase + stop * kPageSize + 1) << first;
    EXPECT_EQ(ended.gpr[x86::kRax], stop - first) << first;
  }
}

}  // namespace
}  // namespace nacre::engine::jit::hostile
