import { createServerSupabaseClient } from '@/lib/supabase/server';
import { auth } from '@clerk/nextjs/server';

/** The documents of all organizations that the caller is a member of: the policies choose. */
export async function GET() {
  const { isAuthenticated } = await auth();
  if (!isAuthenticated) return Response.json({ error: 'Unauthorized' }, { status: 401 });
  const { data, error } = await createServerSupabaseClient().from('documents').select('id, title').order('id');
  return error ? Response.json({ error: error.message }, { status: 500 }) : Response.json(data);
}

/** A new document in the active organization. */
export async function POST(request: Request) {
  const { userId, orgId } = await auth();
  if (!userId || !orgId) return Response.json({ error: 'Choose an organization' }, { status: 401 });
  const { title } = (await request.json()) as { title: string };
  const { data, error } = await createServerSupabaseClient()
    .from('documents')
    .insert({ title, organization_id: orgId, author_id: userId })
    .select('id, title')
    .single();
  return error ? Response.json({ error: error.message }, { status: 403 }) : Response.json(data, { status: 201 });
}
