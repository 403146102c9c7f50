import { createServerSupabaseClient } from '@/lib/supabase/server';
import { auth } from '@clerk/nextjs/server';

/** The people in my organizations, read from the synced tables. The schema `clerk` must be exposed for this page. */
export default async function People() {
  const { isAuthenticated } = await auth();
  if (!isAuthenticated) return <p>Sign in to see the people in your organizations.</p>;
  const { data, error } = await createServerSupabaseClient()
    .schema('clerk')
    .from('organization_memberships')
    .select('id, role, organizations(name), users(first_name, last_name)')
    .order('organization_id');
  if (error) return <p role="alert">{explain(error)}</p>;
  if (data.length === 0) return <p>You are not in an organization yet: create one with the switcher above.</p>;
  return (
    <ul>
      {data.map(({ id, role, organizations, users }) => (
        <li key={id}>{`${users.first_name} ${users.last_name}, ${role} of ${organizations.name}`}</li>
      ))}
    </ul>
  );
}

function explain({ code, message }: { code: string; message: string }) {
  if (code === 'PGRST106') return 'Supabase does not expose the schema "clerk": add it under Project Settings, Data API, Exposed schemas.';
  if (code === '42501') return 'Supabase treats this request as anonymous: activate the Supabase integration in the Clerk dashboard, and sign in again.';
  return `Supabase answered: ${message}`;
}
