import type { Database } from '@/database.types';
import { useSession } from '@clerk/nextjs';
import { createClient } from '@supabase/supabase-js';
import { useMemo } from 'react';

/** For client components. One client for each session; it asks Clerk for the token of the moment with every request. */
export function useSupabaseClient() {
  const { session } = useSession();
  return useMemo(
    () =>
      createClient<Database>(
        process.env.NEXT_PUBLIC_SUPABASE_URL!,
        process.env.NEXT_PUBLIC_SUPABASE_PUBLISHABLE_KEY!,
        { accessToken: async () => (await session?.getToken()) ?? null },
      ),
    [session],
  );
}
