"""Operations that several layers share: moments, scale and shift, second derivatives, running statistics, ranks."""
